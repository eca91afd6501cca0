// The folder of a run (stop 4): what it was asked to do, saved before anything else; its metrics, checkpoints, adapter
// and report. One process at a time works in it.
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { replaceFolder, syncFolder, writeSynced } from './checkpoint.js'

export interface RunDirectory {
  readonly path: string
  readonly checkpoints: string
  readonly metrics: string
  readonly adapter: string
  readonly report: string
  /** Lets another process have the folder. */
  release(): void
}

/** JSON with sorted keys; functions by their source text, so that a changed dataset function changes the hash. */
export function stableJson(value: unknown): string {
  return JSON.stringify(value, (_, inner) => {
    if (typeof inner === 'function') return `function ${inner.toString()}`
    if (inner instanceof RegExp) return `regex ${inner}`
    if (inner && typeof inner === 'object' && !Array.isArray(inner)) {
      return Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
    }
    return inner
  })
}

export function hashRecipe(recipe: unknown): string {
  return createHash('sha256').update(stableJson(recipe)).digest('hex')
}

/** Dotted paths at which two plain values differ. */
export function differingPaths(a: unknown, b: unknown, at = ''): string[] {
  if (stableJson(a) === stableJson(b)) return []
  const isRecord = (v: unknown): v is Record<string, unknown> =>
    typeof v === 'object' && v !== null && !Array.isArray(v)
  if (!isRecord(a) || !isRecord(b)) return [at || '(everything)']
  const keys = [...new Set([...Object.keys(a), ...Object.keys(b)])].sort()
  return keys.flatMap((key) => differingPaths(a[key], b[key], at ? `${at}.${key}` : key))
}

/** Since when a process exists, so that a number used again is not taken for it. Linux only; empty elsewhere. */
function startOf(pid: number): string {
  try {
    // The 22nd field of proc(5) stat, counted after the name in parentheses
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)!.split(' ')[19] ?? ''
  } catch {
    return ''
  }
}

function isRunning(pid: number, start: string): boolean {
  try {
    process.kill(pid, 0)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
  return startOf(pid) === start
}

/** Makes the folder this process's own. @returns what lets others have it @throws while another process works in it */
export function lockFolder(path: string): () => void {
  const lock = join(path, 'run.lock')
  const own = JSON.stringify({ pid: process.pid, start: startOf(process.pid) })
  for (let attempt = 0; ; attempt++) {
    try {
      writeFileSync(lock, own, { flag: 'wx' })
      return () => rmSync(lock, { force: true })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST' || attempt > 3) throw error
    }
    let holder: { pid: number; start: string } | undefined
    try {
      holder = JSON.parse(readFileSync(lock, 'utf8'))
    } catch {
      // Torn or gone: nobody holds it
    }
    if (holder && isRunning(holder.pid, holder.start)) {
      throw new Error(`run directory ${path}: process ${holder.pid} is working in it; wait for it or end it first`)
    }
    rmSync(lock, { force: true })
  }
}

/** What a process killed before it saved its recipe leaves: nothing to resume, nothing to lose. */
const beforeRecipe = new Set(['checkpoints', 'run.lock', 'recipe.json.writing'])

export interface OpenRunOptions {
  path: string
  recipe: unknown
  isResume: boolean
}

/** Makes a new run directory, or opens that of an earlier run after checking that the recipe is the same. */
export function openRunDirectory({ path, recipe, isResume }: OpenRunOptions): RunDirectory {
  const recipeFile = join(path, 'recipe.json')
  if (isResume) {
    if (!existsSync(recipeFile)) {
      throw new Error(`run directory ${path}: holds no run to resume (no recipe.json); leave out --resume to start one`)
    }
    let saved: unknown
    try {
      saved = JSON.parse(readFileSync(recipeFile, 'utf8'))
    } catch (error) {
      throw new Error(`${recipeFile}: is not JSON (${(error as Error).message}); the run cannot be resumed`)
    }
    const differing = differingPaths(saved, JSON.parse(stableJson(recipe)))
    if (differing.length > 0) {
      throw new Error(
        `run directory ${path}: the recipe has changed since the run began (${differing.slice(0, 6).join(', ')}); ` +
          'a resumed run would not be the same run. Undo the change, or start a new run from its adapter (stage.startAdapter)',
      )
    }
  } else if (existsSync(path) && readdirSync(path).some((name) => !beforeRecipe.has(name))) {
    throw new Error(`run directory ${path}: is not empty; resume the run in it (--resume) or name another folder`)
  }
  mkdirSync(join(path, 'checkpoints'), { recursive: true })
  const release = lockFolder(path)
  if (!isResume) {
    writeJson(recipeFile, JSON.parse(stableJson(recipe)))
  }
  return {
    path,
    checkpoints: join(path, 'checkpoints'),
    metrics: join(path, 'metrics.jsonl'),
    adapter: join(path, 'adapter'),
    report: join(path, 'report.json'),
    release,
  }
}

/** Lets `write` fill a folder and puts it in place only when it is complete. */
export async function writeFolder(path: string, write: (folder: string) => void | Promise<void>): Promise<void> {
  const aside = `${path}.writing-${process.pid}`
  rmSync(aside, { recursive: true, force: true })
  mkdirSync(aside, { recursive: true })
  await write(aside)
  syncFolder(aside)
  replaceFolder(aside, path)
}

/** A JSON file that is there entirely or not at all. */
export function writeJson(path: string, value: unknown): void {
  writeSynced(`${path}.writing`, `${JSON.stringify(value, undefined, 2)}\n`)
  renameSync(`${path}.writing`, path)
  syncFolder(dirname(path))
}
