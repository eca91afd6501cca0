// The online loop (stop 12): roll out, score, several updates, again. Stages that learn from what the policy writes run on
// it; what they learn from it is their method's, it knows no loss and no model.
import { CounterRandom, type EncodedPrompt, type PromptLoader } from '../data/index.js'
import type { TrainState } from './checkpoint.js'
import type { EndReason, EvaluationResult, TrainingEvent } from './events.js'
import type { CheckpointPlan } from './loop.js'
import { findNonFinite } from './non-finite.js'
import { batchOf, cutBatches, scoreCompletions } from './online/completion-batches.js'
import { completionMetrics } from './online/completion-metrics.js'
import type { RolloutEngine, RolloutOptions, SampledCompletion } from './online/rollout.js'
import { type ScoredBatch, startsOf } from './online/scored-batch.js'
import type { AccumulateResult, MicroBatch, UpdateHyper } from './program.js'
import type { Completion, RewardSource } from './rewards/reward.js'
import { mean } from './statistics.js'
import type { LiveProgram } from './step.js'

/** What a method makes of the scored completions of a step. */
export interface UpdatePlan {
  /** Members of each mini-batch's loss, in their weights: filled micro-batches for each trained model. */
  fill(members: readonly number[], batch: MicroBatch, miniBatch: readonly number[]): Record<string, MicroBatch>
  readonly metrics: Record<string, number>
  /** Measured from what the micro-batches gave, with the members of each. */
  measure(results: readonly MiniBatchResult[]): Record<string, number>
}

export interface MiniBatchResult {
  readonly members: readonly number[]
  /** Of each trained model. */
  readonly outputs: Readonly<Record<string, AccumulateResult>>
}

export interface OnlineMethod {
  /** The models that are trained, the policy first. */
  readonly programs: Readonly<Record<string, LiveProgram>>
  /** What the learning rate is multiplied by for a model; 1 where it is not named. */
  readonly rateFactors?: Readonly<Record<string, number>>
  readonly needsReference: boolean
  /** Of the value model, where there is one. */
  readonly value?: LiveProgram | undefined
  plan(batch: ScoredBatch, state: { klCoefficient: number }): UpdatePlan
  /** The weight of the divergence after a step. */
  adapt?(klCoefficient: number, metrics: Readonly<Record<string, number>>, completions: number): number
}

export interface OnlineLoopOptions {
  readonly method: OnlineMethod
  readonly policy: LiveProgram
  readonly engine: RolloutEngine
  readonly rewards: readonly RewardSource[]
  readonly prompts: PromptLoader
  readonly heldOut: readonly EncodedPrompt[]
  readonly sampling: RolloutOptions
  readonly totalSteps: number
  /** Optimizer updates: passes over the completions of a step, and mini-batches of each. */
  readonly numEpochs: number
  readonly numMiniBatches: number
  readonly microBatchSize: number
  readonly maxTokens: number
  learningRate(step: number): number
  readonly optimizer: Omit<UpdateHyper, 'learningRate' | 'step'>
  readonly evaluation: { everySteps: number; atStart: boolean; atEnd: boolean }
  readonly klCoefficient: number
  readonly checkpoint: CheckpointPlan
  emit(event: TrainingEvent): void
  readonly signal: AbortSignal | undefined
  readonly resume: TrainState | undefined
  readonly seed: number
}

export interface OnlineLoopResult {
  reason: Exclude<EndReason, 'failed'>
  state: TrainState
  trainLoss: number | undefined
  trainSeconds: number
  tokensPerSecond: number
}

/** Samples of a step that are shown. */
const shownSamples = 2
/** Seeds of evaluation are apart from those of training steps. */
const evaluationStep = 2 ** 31

/** Rewards of all sources, by completion. @throws RewardError */
async function scoreAll(
  completions: readonly SampledCompletion[],
  prompts: readonly EncodedPrompt[],
  rewards: readonly RewardSource[],
  endId: number,
  signal: AbortSignal,
): Promise<(number | null)[][]> {
  const seen: Completion[] = completions.map(({ prompt, text, completionIds, finishReason }) => ({
    prompt: prompts[prompt]!.text,
    completion: text,
    tokens: completionIds.length,
    finishReason,
    row: prompts[prompt]!.row,
    place: prompts[prompt]!.place,
  }))
  // A reward model has read completions that end: one that was cut is ended for it, so that its score means the same
  const ids = completions.map(({ promptIds, completionIds, finishReason }) =>
    Int32Array.of(...promptIds, ...completionIds, ...(finishReason === 'length' ? [endId] : [])),
  )
  const bySource: (number | null)[][] = []
  for (const source of rewards) bySource.push(await source.score(seen, ids, signal))
  return completions.map((_, i) => bySource.map((scores) => scores[i]!))
}

/** Σ w_f R_f over the sources that scored; NaN where none did. */
function weightedReward(scores: readonly (number | null)[], rewards: readonly RewardSource[]): number {
  const known = scores.flatMap((score, f) => (score === null ? [] : [score * rewards[f]!.weight]))
  return known.length > 0 ? known.reduce((a, b) => a + b, 0) : Number.NaN
}

function rewardMetrics(scores: ScoredBatch['scores'], rewards: readonly RewardSource[]): Record<string, number> {
  const metrics: Record<string, number> = {}
  const put = (name: string, values: readonly number[]) => {
    const known = values.filter((x) => Number.isFinite(x))
    const average = mean(known)
    metrics[`rewards/${name}`] = average
    const squares = known.reduce((sum, x) => sum + (x - average) ** 2, 0)
    metrics[`rewards/${name}Std`] = Math.sqrt(squares / Math.max(1, known.length - 1))
  }
  put(
    'total',
    scores.map((row) => weightedReward(row, rewards)),
  )
  if (rewards.length > 1) {
    for (const [f, { name }] of rewards.entries())
      put(
        name,
        scores.map((row) => row[f] ?? Number.NaN),
      )
  }
  return metrics
}

/** Trains until `totalSteps` or an abort. */
export async function trainOnline(options: OnlineLoopOptions): Promise<OnlineLoopResult> {
  const { method, policy, engine, rewards, prompts, sampling, totalSteps, emit, signal, seed, checkpoint } = options
  const now = () => performance.now()
  const started = now()
  const most = { size: options.microBatchSize, maxTokens: options.maxTokens }
  const never = new AbortController().signal
  const state: TrainState = options.resume
    ? structuredClone(options.resume)
    : {
        step: 0,
        epoch: 0,
        seed,
        tokens: 0,
        targetTokens: 0,
        loader: prompts.getState(),
        evaluation: { first: undefined, last: undefined, best: undefined, stale: 0 },
        online: { updates: 0, klCoefficient: options.klCoefficient },
      }
  const online = state.online!
  const rates: number[] = []
  let trainLoss: number | undefined
  let savedStep = options.resume ? state.step : -1
  let meanStepMs: number | undefined

  const scoreWith = (model: 'adapter' | 'reference') => async (batch: MicroBatch) =>
    (await policy.score(batch, { model })).values

  const save = async () => {
    if (savedStep === state.step) return
    const path = await checkpoint.save(state)
    savedStep = state.step
    emit({ type: 'checkpoint', step: state.step, path })
  }

  const evaluate = async (): Promise<void> => {
    const { heldOut } = options
    if (heldOut.length === 0 || state.evaluation.last?.step === state.step) return
    const completions = await engine.sample(
      heldOut.map(({ ids }) => ids),
      { ...sampling, numGenerations: 1, seed, step: evaluationStep, ...(signal ? { signal } : {}) },
      (done, total) => emit({ type: 'progress', task: 'evaluating', done, total, unit: 'completions' }),
    )
    const scores = await scoreAll(completions, heldOut, rewards, engine.endId, signal ?? never)
    const starts = startsOf(completions)
    const metrics: Record<string, number> = {}
    for (const [name, value] of Object.entries({
      ...rewardMetrics(scores, rewards),
      ...completionMetrics(completions),
    }))
      metrics[`eval/${name}`] = value
    if (method.needsReference) {
      const logps = await scoreCompletions(completions, starts, most, scoreWith('adapter'))
      const refLogps = await scoreCompletions(completions, starts, most, scoreWith('reference'))
      metrics['eval/klPerToken'] = mean(Array.from(logps, (logp, i) => logp - refLogps[i]!))
    }
    const result: EvaluationResult = { step: state.step, loss: -metrics['eval/rewards/total']!, metrics }
    const seen = state.evaluation
    seen.first ??= result
    seen.last = result
    const isBest = seen.best === undefined || result.loss < seen.best.loss
    if (isBest) seen.best = result
    emit({ type: 'evaluation', ...result, isBest })
    savedStep = -1 // what this evaluation found belongs into the checkpoint
  }

  const finish = async (reason: OnlineLoopResult['reason']): Promise<OnlineLoopResult> => {
    if (reason !== 'interrupted' && options.evaluation.atEnd) {
      try {
        await evaluate()
      } catch (error) {
        if (!signal?.aborted) throw error
        reason = 'interrupted'
      }
    }
    await save()
    const sorted = [...rates].sort((a, b) => a - b)
    return {
      reason,
      state,
      trainLoss,
      trainSeconds: (now() - started) / 1000,
      tokensPerSecond: sorted[sorted.length >> 1] ?? 0,
    }
  }

  /** One step; undefined where an abort cut it short: nothing of it is kept. */
  const runStep = async (step: number) => {
    const begin = now()
    const asked = prompts.next()
    const spent = { generation: 0, scoring: 0, updates: 0 }
    const timed = async <T>(phase: keyof typeof spent, work: () => Promise<T>): Promise<T> => {
      const from = now()
      const result = await work()
      spent[phase] += (now() - from) / 1000
      return result
    }
    const completions = await timed('generation', () =>
      engine.sample(
        asked.map(({ ids }) => ids),
        { ...sampling, seed, step, ...(signal ? { signal } : {}) },
        (done, total) => emit({ type: 'progress', task: `step ${step}, sampling`, done, total, unit: 'completions' }),
      ),
    )
    const starts = startsOf(completions)
    const batch = await timed('scoring', async (): Promise<ScoredBatch> => {
      const scores = await scoreAll(completions, asked, rewards, engine.endId, signal ?? never)
      const logps = await scoreCompletions(completions, starts, most, scoreWith('adapter'))
      const refLogps = method.needsReference
        ? await scoreCompletions(completions, starts, most, scoreWith('reference'))
        : null
      const { value } = method
      const values = value
        ? await scoreCompletions(completions, starts, most, async (own) => (await value.score(own)).values)
        : null
      return { completions, starts, scores, logps, refLogps, values }
    })
    signal?.throwIfAborted()
    const plan = method.plan(batch, { klCoefficient: online.klCoefficient })
    const learningRate = options.learningRate(state.step)
    const updates = await timed('updates', () => update(step, batch, plan, learningRate))
    const metrics: Record<string, number> = {
      ...rewardMetrics(batch.scores, rewards),
      ...completionMetrics(completions),
      ...plan.metrics,
      ...plan.measure(updates.results),
      ...(sampling.temperature === 1 ? { 'sampling/logpGap': logpGap(batch) } : {}),
    }
    if (method.adapt) {
      online.klCoefficient = method.adapt(online.klCoefficient, metrics, completions.length)
      metrics['kl/coefficient'] = online.klCoefficient
    }
    const seconds = (now() - begin) / 1000
    metrics['perf/generationShare'] = spent.generation / seconds
    metrics['perf/scoringShare'] = spent.scoring / seconds
    metrics['perf/updateShare'] = spent.updates / seconds
    metrics['perf/overheadShare'] = 1 - (spent.generation + spent.scoring + spent.updates) / seconds
    metrics['perf/generatedPerSecond'] = starts.at(-1)! / spent.generation
    return { batch, updates, metrics, learningRate, seconds, asked, updateSeconds: spent.updates }
  }

  const update = async (step: number, batch: ScoredBatch, plan: UpdatePlan, learningRate: number) => {
    const { completions } = batch
    const results: MiniBatchResult[] = []
    let lossSum = 0
    let tokens = 0
    let gradNorm = 0
    let count = 0
    for (let epoch = 0; epoch < options.numEpochs; epoch++) {
      const order = completions.map((_, i) => i)
      new CounterRandom(seed, 'online/updates', step * options.numEpochs + epoch).shuffle(order)
      const size = Math.ceil(order.length / options.numMiniBatches)
      for (let from = 0; from < order.length; from += size) {
        const miniBatch = order.slice(from, from + size)
        // Longest first: micro-batches of like lengths
        const sorted = miniBatch.toSorted(
          (a, b) => completions[b]!.completionIds.length - completions[a]!.completionIds.length || a - b,
        )
        for (const [i, members] of cutBatches(completions, sorted, most).entries()) {
          const filled = plan.fill(members, batchOf(completions, members), miniBatch)
          const outputs: Record<string, AccumulateResult> = {}
          for (const [name, program] of Object.entries(method.programs)) {
            const own = filled[name]!
            const result = await program.accumulate(own, { first: i === 0, lossScale: 1, rngStep: online.updates + 1 })
            if (!Number.isFinite(result.lossSum)) throw notFinite(step, name, program, batch, members)
            outputs[name] = result
            tokens += own.inputIds.length
          }
          lossSum += Object.values(outputs)[0]!.lossSum
          results.push({ members, outputs })
        }
        online.updates++
        count++
        for (const [name, program] of Object.entries(method.programs)) {
          const { gradNorm: norm } = await program.update({
            ...options.optimizer,
            learningRate: learningRate * (method.rateFactors?.[name] ?? 1),
            step: online.updates,
          })
          if (!Number.isFinite(norm)) throw notFinite(step, name, program, batch, miniBatch)
          if (program === policy) gradNorm = norm
        }
      }
    }
    return { results, loss: lossSum / Math.max(1, count), tokens, gradNorm }
  }

  try {
    if (options.evaluation.atStart && state.step === 0) await evaluate()
    while (state.step < totalSteps) {
      if (signal?.aborted) return await finish('interrupted')
      const step = state.step + 1
      const { batch, updates, metrics, learningRate, seconds, asked, updateSeconds } = await runStep(step)
      state.step = step
      state.epoch = prompts.epoch
      state.tokens += updates.tokens
      state.targetTokens += batch.starts.at(-1)!
      state.loader = prompts.getState()
      trainLoss = updates.loss
      rates.push(updates.tokens / updateSeconds)
      meanStepMs = meanStepMs === undefined ? seconds * 1000 : meanStepMs + 0.2 * (seconds * 1000 - meanStepMs)
      emit({
        type: 'step',
        step,
        epoch: state.epoch,
        loss: updates.loss,
        gradNorm: updates.gradNorm,
        learningRate,
        tokens: updates.tokens,
        targetTokens: batch.starts.at(-1)!,
        tokensPerSecond: updates.tokens / updateSeconds,
        metrics,
        rssMb: process.memoryUsage.rss() / 2 ** 20,
        etaSeconds: ((totalSteps - step) * meanStepMs) / 1000,
      })
      for (const { prompt, text } of batch.completions.slice(0, shownSamples))
        emit({ type: 'sample', step, prompt: asked[prompt]!.text, text, source: 'adapter' })
      const { everySteps } = options.evaluation
      if (everySteps > 0 && step % everySteps === 0) await evaluate()
      if (checkpoint.everySteps > 0 && step % checkpoint.everySteps === 0) await save()
    }
  } catch (error) {
    // A step that was cut short has changed nothing but, in its updates, weights: those of the last checkpoint count
    if (!signal?.aborted) throw error
    prompts.setState(state.loader)
    return await finish('interrupted')
  }
  return finish('completed')
}

/** Mean |sampled − recomputed| log-probability, where both are at temperature 1; what bf16 and another order of sums make. */
function logpGap({ completions, starts, logps }: ScoredBatch): number {
  let sum = 0
  let count = 0
  for (const [i, { sampledLogps }] of completions.entries()) {
    for (const [t, logp] of sampledLogps.entries()) {
      sum += Math.abs(logp - logps[starts[i]! + t]!)
      count++
    }
  }
  return sum / Math.max(1, count)
}

function notFinite(
  step: number,
  model: string,
  program: LiveProgram,
  { completions }: ScoredBatch,
  members: readonly number[],
): Error {
  const tensor = findNonFinite(program.layout, program.grads) ?? 'none of the adapter (the loss alone)'
  const texts = members.slice(0, 2).map((i) => JSON.stringify(completions[i]!.text.slice(0, 120)))
  return new Error(
    `step ${step}: loss or gradient of the ${model} is not finite; first bad tensor: ${tensor}; completions ${texts.join(', ')}. ` +
      'Lower the learning rate, or look at the rewards; the last checkpoint is unharmed.',
  )
}
