// What the stages that sample share (stops 8 to 14): opening, resuming, the online loop, the export. A stage adds its
// objectives and its method.
import { join } from 'node:path'
import {
  hashLayout,
  loadLatestCheckpoint,
  pruneCheckpoints,
  removeLeftovers,
  restoreOther,
  restoreProgram,
  saveCheckpoint,
} from '../checkpoint.js'
import type { RunContext, StageOutcome } from '../context.js'
import { type OnlineMethod, trainOnline } from '../online-loop.js'
import { estimateMemory, type PlanReport, requireMemory } from '../plan.js'
import type { PreparedOnline } from '../prepare-online.js'
import { hashRecipe, writeFolder } from '../run-directory.js'
import { learningRateAt } from '../schedules.js'
import type { OnlineOptions } from './online-schema.js'

/** What a stage brings to the shared run. */
export interface OnlineStage {
  readonly prepared: PreparedOnline
  readonly method: OnlineMethod
  readonly temperature: number
  readonly numGenerations: number
  readonly learningRate: number
  readonly numEpochs: number
  readonly numMiniBatches: number
  /** Weight of the divergence at the start, where the method adapts it. */
  readonly klCoefficient: number
}

const stepsOf = (options: OnlineOptions, { prompts }: PreparedOnline) =>
  options.maxSteps ?? Math.max(1, Math.ceil(options.epochs * prompts.stepsPerEpoch))

/** All programs in training; the others share the base and the workspace of the policy. */
function plannedBytes({ policy, value }: PreparedOnline): number {
  return policy.plannedBytes + (value ? value.params.byteLength * 4 : 0)
}

/** Runs a stage from its start, or from where it was interrupted, to the exported adapter. Closes what it opened. */
export async function runOnline(
  context: RunContext,
  options: OnlineOptions,
  open: () => Promise<OnlineStage>,
): Promise<StageOutcome> {
  const runDir = context.runDir!
  const stage = await open()
  const { prepared, method } = stage
  try {
    const { policy, value } = prepared
    requireMemory(estimateMemory(plannedBytes(prepared)))
    const folder = join(runDir, 'checkpoints')
    removeLeftovers(folder)
    const totalSteps = stepsOf(options, prepared)
    const checkpoint = context.resume
      ? loadLatestCheckpoint(folder, {
          fallback: context.resume.fallback,
          onSkip: (error) => context.emit({ type: 'warning', message: error.message }),
        })
      : undefined
    if (context.resume && !checkpoint) {
      context.emit({ type: 'warning', message: 'the run has no usable checkpoint yet: it starts from the beginning' })
    }
    if (checkpoint) {
      if (checkpoint.isa !== prepared.isa) {
        context.emit({
          type: 'warning',
          message: `the checkpoint was written with ${checkpoint.isa} kernels and this process uses ${prepared.isa}: the run continues, but not bit for bit`,
        })
      }
      restoreProgram(checkpoint, policy)
      if (value) restoreOther(checkpoint, 'value', value)
      prepared.prompts.setState(checkpoint.state.loader)
    }
    const identity = {
      recipeHash: hashRecipe(context.recipe),
      layoutHash: hashLayout(policy.layout),
      isa: prepared.isa,
      versions: prepared.versions,
    }
    const warmupSteps = options.warmupSteps < 1 ? Math.round(options.warmupSteps * totalSteps) : options.warmupSteps
    const schedule = { baseLearningRate: stage.learningRate, warmupSteps, totalSteps }
    context.emit({
      type: 'runStart',
      runDir,
      recipe: context.recipe.name,
      totalSteps,
      startStep: checkpoint?.state.step ?? 0,
      evaluatedStep: checkpoint?.state.evaluation.last?.step,
      base: prepared.base,
      device: prepared.device,
    })
    const { optimizer } = options
    const result = await trainOnline({
      method,
      policy,
      engine: prepared.engine,
      rewards: prepared.rewards,
      prompts: prepared.prompts,
      heldOut: prepared.heldOut,
      sampling: {
        maxCompletionLength: options.maxCompletionLength,
        temperature: stage.temperature,
        topK: options.topK,
        topP: options.topP,
        numGenerations: stage.numGenerations,
      },
      totalSteps,
      numEpochs: stage.numEpochs,
      numMiniBatches: stage.numMiniBatches,
      microBatchSize: options.microBatchSize,
      maxTokens: prepared.maxTokens,
      learningRate: (step) => learningRateAt(step, options.schedule, schedule),
      optimizer: {
        beta1: optimizer.beta1,
        beta2: optimizer.beta2,
        epsilon: optimizer.epsilon,
        weightDecay: optimizer.weightDecay,
        maxGradNorm: options.maxGradNorm,
      },
      evaluation: options.evaluation,
      klCoefficient: stage.klCoefficient,
      checkpoint: {
        everySteps: options.checkpoint.everySteps,
        onBest: false,
        async save(state) {
          const path = await saveCheckpoint({
            folder,
            program: policy,
            ...(value ? { others: { value } } : {}),
            state,
            identity,
            exportAdapter: prepared.exportAdapter,
          })
          pruneCheckpoints(folder, { last: options.checkpoint.keepLast, best: false }, undefined)
          return path
        },
      },
      emit: context.emit,
      signal: context.signal,
      resume: checkpoint?.state,
      seed: options.seed,
    })
    let adapter: string | undefined
    if (result.reason !== 'interrupted') {
      adapter = join(runDir, 'adapter')
      await writeFolder(adapter, prepared.exportAdapter)
    }
    const { first, last, best } = result.state.evaluation
    return {
      reason: result.reason,
      step: result.state.step,
      totalSteps,
      trainLoss: result.trainLoss,
      before: first?.step === 0 ? first : undefined,
      after: last?.step === result.state.step ? last : undefined,
      best,
      adapter,
      trainSeconds: result.trainSeconds,
      tokensPerSecond: result.tokensPerSecond,
    }
  } finally {
    await prepared.close()
  }
}

/** Steps and memory of a run; closes what it opened. Time depends on what the policy writes and is not foretold. */
export async function planOnline(options: OnlineOptions, open: () => Promise<OnlineStage>): Promise<PlanReport> {
  const { prepared, numGenerations } = await open()
  try {
    const { policy, prompts } = prepared
    const start = prompts.getState()
    const first = prompts.next()
    prompts.setState(start)
    const promptTokens = first.reduce((sum, { ids }) => sum + ids.length, 0)
    const completionTokens = first.length * options.maxCompletionLength
    return {
      base: prepared.base,
      device: prepared.device,
      totalSteps: stepsOf(options, prepared),
      epochs: options.epochs,
      trainableParameters: policy.layout.tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0),
      tokensPerStep: numGenerations * (promptTokens + completionTokens),
      targetTokensPerStep: numGenerations * completionTokens,
      heldOutRows: prepared.heldOut.length,
      data: undefined,
      memory: estimateMemory(plannedBytes(prepared)),
      time: undefined,
    }
  } finally {
    await prepared.close()
  }
}
