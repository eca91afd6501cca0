// `run()` over the program in plain arithmetic: run directory, events, export, refusal to resume what has changed,
// and kill -9 at random moments.
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { listCheckpoints } from '../../src/training/checkpoint.js'
import type { TrainingEvent } from '../../src/training/events.js'
import { startPlan, startRun } from '../../src/training/run.js'
import { toyPrepare, toyRecipe } from './toy-run.js'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-run-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const lines = (path: string) =>
  readFileSync(path, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
const adapterOf = (runDir: string) => readFileSync(join(runDir, 'adapter', 'adapter.f32'))

it('leaves recipe, metrics, checkpoints, adapter and report', async () => {
  const runDir = join(folder, 'run')
  const run = startRun(toyRecipe(), toyPrepare(), { runDir })
  const events: TrainingEvent[] = []
  for await (const event of run) events.push(event)
  const result = await run.result
  expect(events[0]).toMatchObject({ type: 'runStart', totalSteps: 12, startStep: 0 })
  expect(events.at(-1)).toMatchObject({ type: 'runEnd', reason: 'completed', step: 12 })
  expect(result.after!.loss).toBeLessThan(result.before!.loss)
  expect(JSON.parse(readFileSync(join(runDir, 'report.json'), 'utf8')).after).toEqual(result.after)
  expect(JSON.parse(readFileSync(join(runDir, 'recipe.json'), 'utf8')).name).toBe('toy')
  expect(lines(join(runDir, 'metrics.jsonl')).filter(({ type }) => type === 'step')).toHaveLength(12)
  expect(existsSync(join(runDir, 'run.lock'))).toBe(false)
  expect(adapterOf(runDir).byteLength).toBeGreaterThan(0)
})

it('refuses a folder that is in use, not empty, or of another recipe', async () => {
  const runDir = join(folder, 'run')
  await startRun(toyRecipe(), toyPrepare(), { runDir }).result
  await expect(startRun(toyRecipe(), toyPrepare(), { runDir }).result).rejects.toThrow('is not empty')
  const changed = toyRecipe({ learningRate: 0.01 })
  await expect(startRun(changed, toyPrepare(), { runDir, resume: true }).result).rejects.toThrow('stage.learningRate')
  await expect(startRun(changed, toyPrepare(), { runDir: join(folder, 'x'), resume: true }).result).rejects.toThrow(
    'no run to resume',
  )
  const slow = startRun(toyRecipe(), toyPrepare({ delayMs: 20 }), { runDir: join(folder, 'slow') })
  for await (const event of slow) if (event.type === 'step') break
  await expect(
    startRun(toyRecipe(), toyPrepare(), { runDir: join(folder, 'slow'), resume: true }).result,
  ).rejects.toThrow('is working in it')
  await slow.result
})

it('exports the best weights when told', async () => {
  const runDir = join(folder, 'run')
  const stage = { evaluation: { everySteps: 3 }, export: 'best', learningRate: 5, maxGradNorm: 0 }
  const { best, after } = await startRun(toyRecipe(stage), toyPrepare(), { runDir }).result
  expect(best!.step).toBeLessThan(12)
  expect(after).toEqual(best)
  const path = listCheckpoints(join(runDir, 'checkpoints')).find(({ step }) => step === best!.step)!.path
  expect(adapterOf(runDir).equals(readFileSync(join(path, 'params.f32')))).toBe(true)
})

it('reports a failure as event and rejection, and keeps the folder resumable', async () => {
  const runDir = join(folder, 'run')
  const run = startRun(toyRecipe(), toyPrepare({ poisonRow: 17 }), { runDir })
  await expect(run.result).rejects.toThrow('dataset row 17')
  const events: TrainingEvent[] = []
  for await (const event of run) events.push(event)
  expect(events.at(-1)).toMatchObject({ type: 'runEnd', reason: 'failed' })
  expect(existsSync(join(runDir, 'run.lock'))).toBe(false)
  const { reason } = await startRun(toyRecipe(), toyPrepare(), { runDir, resume: true }).result
  expect(reason).toBe('completed')
})

it('plans without writing anything', async () => {
  const plan = await startPlan(toyRecipe(), toyPrepare())
  expect(plan).toMatchObject({ totalSteps: 12, memory: { fits: true } })
  expect(plan.time!.totalSeconds).toBeGreaterThan(0)
})

/** Runs the toy run in a process of its own, killed after `killAfterMs` → whether it ended by itself. */
function runProcess(runDir: string, killAfterMs: number | undefined): Promise<boolean> {
  const child = spawn(
    process.execPath,
    [
      fileURLToPath(new URL('../../node_modules/jiti/lib/jiti-cli.mjs', import.meta.url)),
      fileURLToPath(new URL('./toy-process.ts', import.meta.url)),
      runDir,
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  return new Promise((resolve, reject) => {
    // The clock starts when the run does, so that kills fall into it
    if (killAfterMs !== undefined) child.stdout.once('data', () => setTimeout(() => child.kill('SIGKILL'), killAfterMs))
    else child.stdout.resume()
    child.once('error', reject)
    child.once('exit', (code) => resolve(code === 0))
  })
}

it('killed at random moments and resumed, ends with the adapter of an undisturbed run', async () => {
  const whole = join(folder, 'whole')
  await startRun(toyRecipe(), toyPrepare(), { runDir: whole }).result
  const runDir = join(folder, 'killed')
  let kills = 0
  while (!(await runProcess(runDir, kills < 6 ? 5 + ((kills * 37) % 60) : undefined))) {
    kills++
    // A torn line at the end of the log must not disturb either
    if (existsSync(join(runDir, 'metrics.jsonl')))
      writeFileSync(join(runDir, 'metrics.jsonl'), '{"type":"st', { flag: 'a' })
    expect(kills).toBeLessThan(20)
  }
  expect(kills).toBeGreaterThan(0)
  expect(adapterOf(runDir).equals(adapterOf(whole))).toBe(true)
  const visible = (path: string) =>
    lines(join(path, 'metrics.jsonl')).flatMap((line) =>
      line.type === 'step' || line.type === 'evaluation'
        ? [[line.type, line.step, line['train/loss'] ?? line['eval/loss']]]
        : [],
    )
  expect(visible(runDir)).toEqual(visible(whole))
})
