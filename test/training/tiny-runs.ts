// Whole runs of alignment stages over the tiny base: rows, recipes, runs that are cut short, runs with another number of
// threads.
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect } from 'vitest'
import { openSafetensors } from '../../src/models/safetensors.js'
import { resolveRecipe } from '../../src/recipe/index.js'
import type { TrainingEvent } from '../../src/training/events.js'
import { run, type TrainableRecipe } from '../../src/training/index.js'
import { importTiny, words } from './tiny-base.js'
import { seeded } from './toy-program.js'

export interface Place {
  folder: string
  base: string
}

/** A folder with the base, the cache beside it, for the tests of a file. Filled before they run. */
export function usePlace(prefix: string): Place {
  const place: Place = { folder: '', base: '' }
  const cache = process.env.ESPALIER_CACHE
  beforeAll(async () => {
    place.folder = mkdtempSync(join(tmpdir(), prefix))
    process.env.ESPALIER_CACHE = join(place.folder, 'cache')
    place.base = await importTiny(place.folder)
  })
  afterAll(() => {
    if (cache === undefined) delete process.env.ESPALIER_CACHE
    else process.env.ESPALIER_CACHE = cache
    rmSync(place.folder, { recursive: true, force: true })
  })
  return place
}

/** Rows of JSON, by random words → a file. */
export function writeWordRows(
  path: string,
  count: number,
  seed: number,
  rowOf: (word: () => string) => object,
): string {
  const random = seeded(seed)
  const word = () => words[Math.floor(random() * words.length)]!
  writeFileSync(path, Array.from({ length: count }, () => `${JSON.stringify(rowOf(word))}\n`).join(''))
  return path
}

/** A recipe as one that was loaded is: defaults filled in, refused where the schema refuses it. */
export function alignmentRecipe(place: Place, data: object, stage: object, rest: object = {}): TrainableRecipe {
  const recipe = { name: 'tiny', base: place.base, adapter: { rank: 4, alpha: 8 }, data, ...rest }
  return resolveRecipe({ ...recipe, stage: { precision: 'strict', ...stage } }) as unknown as TrainableRecipe
}

/** The recipe with other fields of its stage. */
export function withStage(recipe: TrainableRecipe, stage: object): TrainableRecipe {
  return { ...recipe, stage: { ...recipe.stage, ...stage } }
}

export const stepsOf = (events: readonly TrainingEvent[]) =>
  events.flatMap((event) => (event.type === 'step' ? [event] : []))

export interface TinyRunOptions {
  runDir?: string
  resume?: boolean
  /** Aborts at the first event that it holds for. */
  stopAt?: (event: TrainingEvent) => boolean
  signal?: AbortSignal
}

let runs = 0
/** Runs to the end, or to where it is stopped. */
export async function runTiny(place: Place, recipe: TrainableRecipe, options: TinyRunOptions = {}) {
  const runDir = options.runDir ?? join(place.folder, `run-${runs++}`)
  const controller = new AbortController()
  const events: TrainingEvent[] = []
  const listener = (event: TrainingEvent) => {
    events.push(event)
    if (options.stopAt?.(event)) controller.abort()
  }
  const signal = options.signal ? AbortSignal.any([options.signal, controller.signal]) : controller.signal
  const result = await run(recipe, { runDir, resume: options.resume ?? false, signal, listeners: [listener] }).result
  return { runDir, result, events, steps: stepsOf(events) }
}

export const adapterFile = (runDir: string): Buffer =>
  readFileSync(join(runDir, 'adapter', 'adapter_model.safetensors'))

/** Stops a run of the recipe, resumes it, and expects the adapter of one that was not stopped. */
export async function expectSameWhenCut(
  place: Place,
  recipe: TrainableRecipe,
  whole: string,
  options: Omit<TinyRunOptions, 'runDir' | 'resume'>,
): Promise<{ step: number }> {
  const cut = await runTiny(place, recipe, options)
  expect(cut.result.reason).toBe('interrupted')
  const rest = await runTiny(place, recipe, { runDir: cut.runDir, resume: true })
  expect(rest.result.reason).toBe('completed')
  expect(rest.steps[0]?.step ?? rest.result.step + 1).toBe(cut.result.step + 1)
  expect(adapterFile(cut.runDir).equals(adapterFile(whole))).toBe(true)
  return { step: cut.result.step }
}

/** Largest difference of any value of two adapters with the same tensors. */
export function adapterDifference(a: string, b: string): number {
  const files = [a, b].map((runDir) => openSafetensors(join(runDir, 'adapter', 'adapter_model.safetensors')))
  try {
    const [first, second] = files as [(typeof files)[0], (typeof files)[0]]
    const names = [...first.tensors.keys()]
    expect([...second.tensors.keys()]).toEqual(names)
    const valuesOf = (file: typeof first, name: string) => {
      const bytes = Uint8Array.from(file.read(file.tensors.get(name)!)) // aligned
      return new Float32Array(bytes.buffer)
    }
    const differences = names.map((name) => {
      const other = valuesOf(second, name)
      return valuesOf(first, name).reduce((most, x, i) => Math.max(most, Math.abs(x - other[i]!)), 0)
    })
    return Math.max(...differences)
  } finally {
    for (const file of files) file.close()
  }
}

/** The share of letters from a to m among what was written: a reward for models that know no words. */
export const letters = ({ completion, tokens }: { completion: string; tokens: number }): number =>
  (completion.match(/[a-m]/g)?.length ?? 0) / tokens

/** Runs a TypeScript file of this folder as a process. @param input goes to a file, whose name is the argument */
async function runScript(place: Place, script: string, name: string, input: unknown) {
  const file = join(place.folder, `${name}.json`)
  writeFileSync(file, JSON.stringify(input))
  const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url))
  const child = spawn(process.execPath, [path('../../node_modules/jiti/lib/jiti-cli.mjs'), path(script), file], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let [said, printed] = ['', '']
  child.stderr.on('data', (chunk) => {
    said += chunk
  })
  child.stdout.on('data', (chunk) => {
    printed += chunk
  })
  const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (...ended) => resolve(ended))
  })
  return { code, signal, said, printed }
}

/** Runs recipes of plain data in one process of its own, with so many threads → their run directories. */
export async function runWithThreads(
  place: Place,
  recipes: Readonly<Record<string, TrainableRecipe>>,
  threads: number,
): Promise<Record<string, string>> {
  const jobs = Object.entries(recipes).map(([name, recipe]) => ({
    recipe: { ...recipe, runtime: { threads } },
    runDir: join(place.folder, `threads-${threads}-${name}`),
  }))
  const { code, said } = await runScript(place, './recipes-process.ts', `threads-${threads}`, jobs)
  if (code !== 0) throw new Error(`runs with ${threads} threads failed:\n${said}`)
  return Object.fromEntries(Object.keys(recipes).map((name, i) => [name, jobs[i]!.runDir]))
}

export interface KillOptions {
  readonly runDir: string
  /** Absent: the run goes on to its end. */
  readonly moment?: 'rollout' | 'scoring' | 'update'
  /** Of which step. */
  readonly step: number
}

/**
 * Runs a recipe, rewarded by `letters`, in a process that kills itself as `kill -9` does, or that goes on after it: functions do not
 * travel, and one that was compiled otherwise would be another recipe.
 * @returns its signal, and the steps that it took
 */
export async function runKilled(place: Place, recipe: TrainableRecipe, options: KillOptions) {
  const { signal, said, printed } = await runScript(place, './killed-process.ts', basename(options.runDir), {
    recipe,
    ...options,
  })
  if (signal === null && options.moment !== undefined) throw new Error(`the run was not killed:\n${said}`)
  return { signal, steps: printed.trimEnd().split('\n').map(Number) }
}
