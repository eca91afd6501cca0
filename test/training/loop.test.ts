// The offline loop over a program in plain arithmetic: accumulation, evaluation, stopping, resume, bad numbers.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import {
  type CheckpointIdentity,
  hashLayout,
  listCheckpoints,
  loadLatestCheckpoint,
  pruneCheckpoints,
  restoreProgram,
  saveCheckpoint,
} from '../../src/training/checkpoint.js'
import { evaluateLoss } from '../../src/training/evaluate.js'
import type { StepEvent, TrainingEvent } from '../../src/training/events.js'
import { type OfflineLoopOptions, trainOffline } from '../../src/training/loop.js'
import { NonFiniteError } from '../../src/training/non-finite.js'
import type { TrainProgram } from '../../src/training/program.js'
import { learningRateAt } from '../../src/training/schedules.js'
import { createToyLoader, toyDocuments } from './toy-loader.js'
import { createToyProgram } from './toy-program.js'

const vocabSize = 13
const documents = toyDocuments(24, vocabSize, 7)
const heldOut = toyDocuments(9, vocabSize, 8)
const optimizer = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01, maxGradNorm: 1 }
const totalSteps = 12
const learningRate = (step: number) =>
  learningRateAt(step, { type: 'cosine', numCycles: 0.5 }, { baseLearningRate: 0.05, warmupSteps: 2, totalSteps })

function setup(overrides: Partial<OfflineLoopOptions> & { cut?: [number, number]; shuffle?: boolean } = {}) {
  const { cut = [2, 2], shuffle, ...rest } = overrides
  const events: TrainingEvent[] = []
  const options: OfflineLoopOptions = {
    program: createToyProgram({ vocabSize }),
    loader: createToyLoader(documents, { microBatchSize: cut[0], gradientAccumulationSteps: cut[1], seed: 3, shuffle }),
    totalSteps,
    learningRate,
    optimizer,
    emit: (event) => events.push(event),
    seed: 3,
    ...rest,
  }
  const steps = () => events.filter((event): event is StepEvent => event.type === 'step')
  return { options, events, steps }
}

const heldOutPlan = (program: TrainProgram, everySteps: number) => ({
  everySteps,
  atStart: true,
  atEnd: true,
  metric: 'loss',
  greaterIsBetter: false,
  run: async () => ({ loss: (await evaluateLoss(program, heldOut, { maxTokens: 30 })).loss, metrics: {} }),
})

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-loop-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const identity = (program: TrainProgram): CheckpointIdentity => ({
  recipeHash: 'r',
  layoutHash: hashLayout(program.layout),
  isa: 'none',
  versions: {},
})
const checkpointPlan = (program: TrainProgram, everySteps: number) => ({
  everySteps,
  onBest: false,
  save: async (state: Parameters<typeof saveCheckpoint>[0]['state']) => {
    const path = await saveCheckpoint({ folder, program, state, identity: identity(program) })
    pruneCheckpoints(folder, { last: 2, best: true }, state.evaluation.best?.step)
    return path
  },
})

describe('trainOffline', () => {
  it('learns, one event a step, the rate of the schedule', async () => {
    const { options, steps } = setup()
    const result = await trainOffline(options)
    expect(result.reason).toBe('completed')
    expect(steps().map(({ step }) => step)).toEqual(Array.from({ length: totalSteps }, (_, i) => i + 1))
    expect(steps().map((event) => event.learningRate)).toEqual(
      Array.from({ length: totalSteps }, (_, i) => learningRate(i)),
    )
    expect(steps().at(-1)!.loss).toBeLessThan(steps()[0]!.loss)
  })

  it('gives the same losses however a step is cut into micro-batches', async () => {
    const runs = []
    for (const cut of [
      [8, 1],
      [4, 2],
      [1, 8],
    ] as [number, number][]) {
      const { options, steps } = setup({ cut, shuffle: false })
      await trainOffline(options)
      runs.push(steps().map(({ loss, gradNorm }) => [loss, gradNorm]))
    }
    for (const run of runs.slice(1)) {
      for (const [i, [loss, gradNorm]] of run.entries()) {
        expect(loss).toBeCloseTo(runs[0]![i]![0]!, 6)
        expect(gradNorm).toBeCloseTo(runs[0]![i]![1]!, 6)
      }
    }
  })

  it('continues bit for bit after an abort, over files', async () => {
    const whole = setup()
    whole.options.evaluation = heldOutPlan(whole.options.program, 4)
    await trainOffline(whole.options)

    for (const stopAt of [1, 4, 7]) {
      rmSync(folder, { recursive: true, force: true })
      const abort = new AbortController()
      const first = setup({
        signal: abort.signal,
        afterStep: async (step) => {
          if (step === stopAt) abort.abort()
        },
      })
      first.options.evaluation = heldOutPlan(first.options.program, 4)
      first.options.checkpoint = checkpointPlan(first.options.program, 5)
      expect((await trainOffline(first.options)).reason).toBe('interrupted')
      expect(first.events.at(-1)).toMatchObject({ type: 'checkpoint', step: stopAt })

      const second = setup()
      const checkpoint = loadLatestCheckpoint(folder)!
      restoreProgram(checkpoint, second.options.program)
      second.options.loader.setState(checkpoint.state.loader)
      second.options.evaluation = heldOutPlan(second.options.program, 4)
      second.options.resume = checkpoint.state
      const result = await trainOffline(second.options)
      expect(result.state.step).toBe(totalSteps)
      expect(
        Buffer.from(second.options.program.params.buffer).equals(Buffer.from(whole.options.program.params.buffer)),
      ).toBe(true)
      const visible = (events: TrainingEvent[]) =>
        events.flatMap((event) =>
          event.type === 'step'
            ? [[event.step, event.loss, event.gradNorm, event.epoch]]
            : event.type === 'evaluation'
              ? [[event.step, 'held-out', event.loss, event.isBest]]
              : [],
        )
      expect([...visible(first.events), ...visible(second.events)]).toEqual(visible(whole.events))
    }
  })

  it('stops early when the held-out loss no longer improves and keeps the best checkpoint', async () => {
    const losses = [3, 2.5, 2.6, 2.55, 2.7]
    const { options, events } = setup({ totalSteps: 100 })
    options.checkpoint = { ...checkpointPlan(options.program, 0), onBest: true }
    options.evaluation = {
      ...heldOutPlan(options.program, 2),
      run: async (step) => ({ loss: losses[step / 2]!, metrics: {} }),
      earlyStopping: { patience: 3, minDelta: 0 },
    }
    const result = await trainOffline(options)
    expect(result.reason).toBe('earlyStopping')
    expect(result.state.step).toBe(8)
    expect(result.state.evaluation.best).toMatchObject({ step: 2, loss: 2.5 })
    expect(listCheckpoints(folder).map(({ step }) => step)).toEqual([2, 8])
    expect(events.filter(({ type }) => type === 'evaluation')).toHaveLength(5)
  })

  it('stops at a loss that is not a number, takes no step from it and names step, row and tensor', async () => {
    const poisoned = documents.map((document) => ({ ...document, ids: document.ids.map((id) => (id === 5 ? 4 : id)) }))
    poisoned[17]!.ids[0] = 5
    const program = createToyProgram({ vocabSize, poisonToken: 5 })
    const { options, steps } = setup({
      program,
      loader: createToyLoader(poisoned, { microBatchSize: 2, gradientAccumulationSteps: 2, shuffle: false }),
    })
    const error = await trainOffline(options).then(
      () => undefined,
      (reason) => reason,
    )
    expect(error).toBeInstanceOf(NonFiniteError)
    expect((error as NonFiniteError).report).toEqual({
      step: 5,
      rows: [17],
      places: [],
      tensor: 'base_model.model.toy.lora_A.weight',
      quantity: 'loss',
    })
    expect(program.updates).toBe(4)
    expect(steps()).toHaveLength(4)
    expect(program.params.every(Number.isFinite)).toBe(true)
  })

  it('reports the share of the ceiling and the time left', async () => {
    let clock = 0
    const { options, steps } = setup({
      program: createToyProgram({
        vocabSize,
        delay: async () => {
          clock += 500
        },
      }),
      now: () => clock,
      measureCeiling: async () => 1e-6,
    })
    await trainOffline(options)
    const last = steps().at(-2)!
    expect(last.etaSeconds).toBe(1)
    expect(last.tokensPerSecond).toBe(last.tokens)
    expect(last.ceilingShare).toBeCloseTo((last.tokens * 6 * 3 * vocabSize) / 1000, 9)
  })
})
