// Several stages as one run: each from the result of an earlier one, skipped when nothing has changed, continued when
// interrupted.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type PipelineInput, resolvePipeline, runPipeline, type TrainingEvent } from '../../src/index.js'
import { importTiny, tinyRecipe } from './tiny-base.js'

let folder: string
let pipeline: PipelineInput
const cache = process.env.ESPALIER_CACHE
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-pipeline-'))
  process.env.ESPALIER_CACHE = join(folder, 'cache')
  const { base, adapter, data, stage } = tinyRecipe({ folder, base: await importTiny(folder), stage: { maxSteps: 4 } })
  pipeline = {
    name: 'two',
    base,
    adapter,
    data,
    stages: { first: { stage }, second: { stage: { ...stage, startAdapter: 'stage:first', learningRate: 1e-3 } } },
  } as PipelineInput
})
afterAll(() => {
  if (cache === undefined) delete process.env.ESPALIER_CACHE
  else process.env.ESPALIER_CACHE = cache
  rmSync(folder, { recursive: true, force: true })
})

const weights = (runDir: string, stage: string) =>
  readFileSync(join(runDir, stage, 'adapter', 'adapter_model.safetensors'))

/** Runs it to its end → events, result. */
async function runAll(
  input: PipelineInput,
  runDir: string,
  signal?: AbortSignal,
  onEvent?: (event: TrainingEvent) => void,
) {
  const going = runPipeline(input, { runDir, ...(signal ? { signal } : {}) })
  const events: TrainingEvent[] = []
  for await (const event of going) {
    events.push(event)
    onEvent?.(event)
  }
  return { events, result: await going.result }
}
const changed = (learningRate: number): PipelineInput => ({
  ...pipeline,
  stages: {
    ...pipeline.stages,
    second: { stage: { ...pipeline.stages.second!.stage, learningRate } as PipelineInput['stages'][string]['stage'] },
  },
})

it('runs each stage from the result of the one it names, and skips what has not changed', async () => {
  const runDir = join(folder, 'run')
  const { result, events } = await runAll(pipeline, runDir)
  expect(result.reason).toBe('completed')
  expect(events.filter(({ type }) => type === 'runEnd')).toHaveLength(1)
  const { first, second } = result.stages
  expect(second!.before!.loss).toBeCloseTo(first!.after!.loss, 5)
  const made = weights(runDir, 'second')

  const again = await runAll(pipeline, runDir)
  expect(Object.values(again.result.stages).map(({ isSkipped }) => isSkipped)).toEqual([true, true])
  expect(again.events.some(({ type }) => type === 'step')).toBe(false)
  expect(weights(runDir, 'second')).toEqual(made)

  const other = await runAll(changed(2e-3), runDir)
  expect(Object.values(other.result.stages).map(({ isSkipped }) => isSkipped)).toEqual([true, false])
  expect(weights(runDir, 'second')).not.toEqual(made)
  const aside = readdirSync(runDir).find((name) => name.startsWith('second.before-'))!
  expect(readFileSync(join(runDir, aside, 'adapter', 'adapter_model.safetensors'))).toEqual(made)
})

it('goes on where it was interrupted, to the same weights', async () => {
  const whole = join(folder, 'whole')
  await runAll(pipeline, whole)
  const cut = join(folder, 'cut')
  const controller = new AbortController()
  let started = 0
  const { result } = await runAll(pipeline, cut, controller.signal, (event) => {
    if (event.type === 'stageStart') started++
    if (event.type === 'step' && started === 2 && event.step === 2) controller.abort()
  })
  expect(result.reason).toBe('interrupted')
  expect(existsSync(join(cut, 'second', 'adapter'))).toBe(false)
  const { result: rest, events } = await runAll(pipeline, cut)
  expect(rest.stages.first!.isSkipped).toBe(true)
  expect(events.flatMap((event) => (event.type === 'step' ? event.step : []))[0]).toBeGreaterThan(2)
  expect(weights(cut, 'second')).toEqual(weights(whole, 'second'))
})

it('refuses a stage that does not run before', () => {
  const { first, second } = pipeline.stages
  expect(() => resolvePipeline({ ...pipeline, stages: { second, first } })).toThrow(
    /stages\.second\.stage: refers to stage:first, and no stage runs before it/,
  )
  expect(() => resolvePipeline({ ...pipeline, stages: { first: { stage: { ...first!.stage, epoch: 3 } } } })).toThrow(
    /stages\.first\.stage\.epoch: unknown key; did you mean "epochs"/,
  )
})
