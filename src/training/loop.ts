// The offline loop (stop 12): whole optimizer steps from a loader, token-exact accumulation, evaluation, early
// stopping, checkpoints. Stages that learn from a dataset run on it; it knows no loss, model or format.
import type { TrainState } from './checkpoint.js'
import type { EndReason, EvaluationResult, TrainingEvent } from './events.js'
import { diagnose } from './non-finite.js'
import type { AccumulateResult, MicroBatch, TrainProgram, UpdateHyper } from './program.js'

/** One optimizer step: its micro-batches and the target tokens of all of them. */
export interface LoaderStep {
  microBatches: MicroBatch[]
  targetTokens: number
  /** Passes over the data after this step, fractional. */
  epoch: number
  /** 1-based. */
  step: number
}

export interface StepLoader {
  next(): Promise<LoaderStep | undefined>
  /** JSON that `setState` continues from, as of the last step given out. */
  getState(): unknown
  setState(state: unknown): void
}

export interface EvaluationPlan {
  /** 0: only at the start and the end. */
  everySteps: number
  atStart: boolean
  atEnd: boolean
  /** May reject with the signal's reason when that aborts; the evaluation is then repeated after a resume. */
  run(step: number): Promise<{ loss: number; metrics: Record<string, number> }>
  /** What `best` means: `loss`, or a key of `metrics`. */
  metric: string
  greaterIsBetter: boolean
  /** Stop after this many evaluations in a row without an improvement of at least `minDelta`. */
  earlyStopping?: { patience: number; minDelta: number }
}

export interface CheckpointPlan {
  /** 0: only where the loop ends or is interrupted. */
  everySteps: number
  /** Also where an evaluation is the best so far. */
  onBest: boolean
  save(state: TrainState): Promise<string>
}

export interface OfflineLoopOptions {
  program: TrainProgram
  loader: StepLoader
  totalSteps: number
  /** The rate used at 0-based step. */
  learningRate(step: number): number
  optimizer: Omit<UpdateHyper, 'learningRate' | 'step'>
  /** What the loss is a mean over: default the step's target tokens. */
  lossUnits?(step: LoaderStep): number
  /** Fills what the objective reads beside the tokens. */
  prepareStep?(step: LoaderStep): Promise<MicroBatch[]>
  /** Metrics of a step, `group/name` → value, from the results of its micro-batches. */
  measureStep?(batches: readonly MicroBatch[], results: readonly AccumulateResult[]): Record<string, number>
  evaluation?: EvaluationPlan
  checkpoint?: CheckpointPlan
  emit(event: TrainingEvent): void
  /** Called after each step; samples and the like. */
  afterStep?(step: number): Promise<void>
  /** Aborting finishes the running step, writes a checkpoint and ends the loop. */
  signal?: AbortSignal
  /** State to continue from; its parameters are already in the program and its position in the loader. */
  resume?: TrainState
  seed: number
  /** Rate of the processor in GFLOP/s, asked for rarely. */
  measureCeiling?(): Promise<number>
  /** Where dataset rows came from, for messages. */
  placesOf?(rows: number[]): string[]
  /** Clock in milliseconds. */
  now?(): number
}

export interface OfflineLoopResult {
  reason: Exclude<EndReason, 'failed'>
  state: TrainState
  trainLoss: number | undefined
  trainSeconds: number
  stepSeconds: number[]
  tokensPerSecond: number
}

/** The ceiling is probed again after this long; a probe takes tens of milliseconds. */
const ceilingIntervalMs = 120_000
/** Weight of the newest step in the running mean that the remaining time is estimated from. */
const etaSmoothing = 0.2

export function startState(seed: number, loader: StepLoader): TrainState {
  return {
    step: 0,
    epoch: 0,
    seed,
    tokens: 0,
    targetTokens: 0,
    loader: loader.getState(),
    evaluation: { first: undefined, last: undefined, best: undefined, stale: 0 },
  }
}

/** Trains until `totalSteps`, early stopping, the end of the data or an abort. */
export async function trainOffline(options: OfflineLoopOptions): Promise<OfflineLoopResult> {
  const { program, loader, totalSteps, evaluation, checkpoint, emit, signal } = options
  const now = options.now ?? (() => performance.now())
  const state: TrainState = options.resume ? structuredClone(options.resume) : startState(options.seed, loader)
  const started = now()
  const stepSeconds: number[] = []
  const rates: number[] = []
  let trainLoss: number | undefined
  let meanStepMs: number | undefined
  let ceiling: { gflops: number; at: number } | undefined
  let savedStep = options.resume ? state.step : -1

  const shouldEvaluate = (step: number) =>
    evaluation !== undefined &&
    state.evaluation.last?.step !== step &&
    (step === 0 ? evaluation.atStart : evaluation.everySteps > 0 && step % evaluation.everySteps === 0)

  const isBetter = (result: EvaluationResult, best: EvaluationResult | undefined, minDelta: number) => {
    const read = (of: EvaluationResult) =>
      evaluation!.metric === 'loss' ? of.loss : (of.metrics[evaluation!.metric] ?? Number.NaN)
    const value = read(result)
    if (!Number.isFinite(value)) return false
    if (best === undefined) return true
    return evaluation!.greaterIsBetter ? value > read(best) + minDelta : value < read(best) - minDelta
  }

  /** → whether it was the best so far; undefined when an abort cut it short. */
  const evaluate = async (): Promise<boolean | undefined> => {
    let measured: Awaited<ReturnType<EvaluationPlan['run']>>
    try {
      measured = await evaluation!.run(state.step)
    } catch (error) {
      if (signal?.aborted) return undefined
      throw error
    }
    const { loss, metrics } = measured
    if (!Number.isFinite(loss)) {
      emit({ type: 'warning', message: `step ${state.step}: the held-out loss is not finite` })
    }
    const result: EvaluationResult = { step: state.step, loss, metrics }
    const seen = state.evaluation
    const isBest = isBetter(result, seen.best, 0)
    const isImproved = isBetter(result, seen.best, evaluation!.earlyStopping?.minDelta ?? 0)
    seen.first ??= result
    seen.last = result
    // The untrained adapter sets the mark to beat but does not use up patience
    seen.stale = isImproved || state.step === 0 ? 0 : seen.stale + 1
    if (isBest) seen.best = result
    emit({ type: 'evaluation', ...result, isBest })
    return isBest
  }

  const save = async () => {
    if (!checkpoint || savedStep === state.step) return
    const path = await checkpoint.save(state)
    savedStep = state.step
    emit({ type: 'checkpoint', step: state.step, path })
  }

  const isOutOfPatience = () =>
    evaluation?.earlyStopping !== undefined && state.evaluation.stale >= evaluation.earlyStopping.patience

  const finish = async (reason: OfflineLoopResult['reason']): Promise<OfflineLoopResult> => {
    if (reason !== 'interrupted' && evaluation?.atEnd && state.evaluation.last?.step !== state.step) {
      if ((await evaluate()) === undefined) reason = 'interrupted'
      else savedStep = -1 // what this evaluation found belongs into the checkpoint
    }
    await save()
    const sorted = [...rates].sort((a, b) => a - b)
    return {
      reason,
      state,
      trainLoss,
      trainSeconds: (now() - started) / 1000,
      stepSeconds,
      tokensPerSecond: sorted[sorted.length >> 1] ?? 0,
    }
  }

  if (shouldEvaluate(state.step)) {
    // At step 0, or where an interruption came between a step and its evaluation
    const isBest = await evaluate()
    if (isBest === undefined) return finish('interrupted')
    if (isBest && checkpoint?.onBest) {
      savedStep = -1
      await save()
    }
  }
  while (state.step < totalSteps) {
    if (isOutOfPatience()) return finish('earlyStopping')
    if (signal?.aborted) return finish('interrupted')
    const batch = await loader.next()
    if (!batch) break
    const step = state.step + 1
    const begin = now()

    // The loss is a mean over the whole step, over all its micro-batches
    const lossScale = 1 / (options.lossUnits?.(batch) ?? batch.targetTokens)
    const microBatches = (await options.prepareStep?.(batch)) ?? batch.microBatches
    const results: AccumulateResult[] = []
    let loss = 0
    let tokens = 0
    for (const [index, microBatch] of microBatches.entries()) {
      const result = await program.accumulate(microBatch, { first: index === 0, lossScale, rngStep: step })
      if (!Number.isFinite(result.lossSum))
        throw await diagnose(program, microBatches, step, lossScale, options.placesOf)
      results.push(result)
      loss += result.lossSum
      tokens += microBatch.inputIds.length
    }
    const learningRate = options.learningRate(state.step)
    const { gradNorm } = await program.update({ ...options.optimizer, learningRate, step })
    if (!Number.isFinite(gradNorm)) throw await diagnose(program, microBatches, step, lossScale, options.placesOf)

    const stepMs = now() - begin
    state.step = step
    state.epoch = batch.epoch
    state.tokens += tokens
    state.targetTokens += batch.targetTokens
    state.loader = loader.getState()
    trainLoss = loss
    stepSeconds.push(stepMs / 1000)
    rates.push((tokens / stepMs) * 1000)
    meanStepMs = meanStepMs === undefined ? stepMs : meanStepMs + etaSmoothing * (stepMs - meanStepMs)
    if (options.measureCeiling && (!ceiling || now() - ceiling.at > ceilingIntervalMs)) {
      ceiling = { gflops: await options.measureCeiling(), at: now() }
    }
    const metrics = options.measureStep?.(microBatches, results)
    const documents = microBatches.reduce((sum, { cuSeqlens }) => sum + cuSeqlens.length - 1, 0)
    const labelled = results.reduce((sum, result) => sum + result.tokens, 0)
    const flops = tokens * program.flopsPerToken(tokens / Math.max(1, documents), labelled / tokens)
    emit({
      type: 'step',
      step,
      epoch: batch.epoch,
      loss,
      gradNorm,
      learningRate,
      tokens,
      targetTokens: batch.targetTokens,
      tokensPerSecond: (tokens / stepMs) * 1000,
      ...(ceiling ? { ceilingShare: flops / (stepMs / 1000) / (ceiling.gflops * 1e9) } : {}),
      ...(metrics ? { metrics } : {}),
      rssMb: process.memoryUsage.rss() / 2 ** 20,
      etaSeconds: ((totalSteps - step) * meanStepMs) / 1000,
    })
    await options.afterStep?.(step)

    if (signal?.aborted && step < totalSteps) return finish('interrupted')
    const isBest = shouldEvaluate(step) ? await evaluate() : false
    if (isBest === undefined) return finish('interrupted')
    if (
      (checkpoint && checkpoint.everySteps > 0 && step % checkpoint.everySteps === 0) ||
      (isBest && checkpoint?.onBest)
    ) {
      await save()
    }
  }
  return finish('completed')
}
