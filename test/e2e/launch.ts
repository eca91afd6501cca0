// Starts a run as users do: the command line in a process of its own.
import { spawn } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { TrainableRecipe } from '../../src/training/index.js'

const bin = fileURLToPath(new URL('../../bin/espalier.mjs', import.meta.url))
/** What the plain output says when a run begins or goes on. */
const beginning = /: \d+ steps/

export interface LaunchOptions {
  env?: Record<string, string>
  /** SIGKILL this long after the process started (`spawn`) or after its steps began. */
  kill?: { after: 'spawn' | 'steps'; milliseconds: number }
}

export interface Launched {
  /** Ended by itself and well. */
  isDone: boolean
  /** Was killed by us. */
  isKilled: boolean
  output: string
}

export function launch(recipe: TrainableRecipe, runDir: string, options: LaunchOptions = {}): Promise<Launched> {
  const recipeFile = `${runDir}.recipe.json`
  writeFileSync(recipeFile, JSON.stringify(recipe))
  const place = existsSync(join(runDir, 'recipe.json')) ? ['--resume', runDir] : ['--run-dir', runDir]
  const child = spawn(process.execPath, [bin, 'run', recipeFile, '--plain', ...place], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...options.env },
  })
  let output = ''
  const { kill } = options
  const killSoon = () => setTimeout(() => child.kill('SIGKILL'), kill!.milliseconds)
  if (kill?.after === 'spawn') killSoon()
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk) => {
      const began = beginning.test(output)
      output += chunk
      if (kill?.after === 'steps' && !began && beginning.test(output)) killSoon()
    })
  }
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code, signal) => resolve({ isDone: code === 0, isKilled: signal === 'SIGKILL', output }))
  })
}

/** Launches and throws unless the run ends well. */
export async function launchWhole(
  recipe: TrainableRecipe,
  runDir: string,
  env?: Record<string, string>,
): Promise<string> {
  const { isDone, output } = await launch(recipe, runDir, env ? { env } : {})
  if (!isDone) throw new Error(`the run in ${runDir} failed:\n${output}`)
  return runDir
}

export const adapterWeights = (runDir: string): Buffer =>
  readFileSync(join(runDir, 'adapter', 'adapter_model.safetensors'))

export interface StepLine {
  step: number
  loss: number
  gradNorm: number
}

/** Steps and evaluations of a run, in the order of its log. */
export function readMetrics(runDir: string): { steps: StepLine[]; evaluations: { step: number; loss: number }[] } {
  const lines = readFileSync(join(runDir, 'metrics.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
  return {
    steps: lines
      .filter(({ type }) => type === 'step')
      .map((line) => ({ step: line.step, loss: line['train/loss'], gradNorm: line['train/gradNorm'] })),
    evaluations: lines
      .filter(({ type }) => type === 'evaluation')
      .map((line) => ({ step: line.step, loss: line['eval/loss'] })),
  }
}
