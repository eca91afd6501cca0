// What the stages over a dataset share (stops 8 to 14): opening, resuming, the offline loop with its evaluations and
// checkpoints, the export. A stage adds its objective, what a batch is made of, and what is measured on held-out rows.
import { join } from 'node:path'
import {
  hashLayout,
  type LoadedCheckpoint,
  listCheckpoints,
  loadCheckpoint,
  loadLatestCheckpoint,
  pruneCheckpoints,
  removeLeftovers,
  restoreProgram,
  saveCheckpoint,
} from '../checkpoint.js'
import type { PreparedRun, PrepareOptions, RunContext, StageOutcome } from '../context.js'
import { type EvaluationPlan, type OfflineLoopOptions, trainOffline } from '../loop.js'
import { estimateMemory, type PlanReport, planRun, requireMemory } from '../plan.js'
import { hashRecipe, writeFolder } from '../run-directory.js'
import { learningRateAt } from '../schedules.js'
import type { OfflineOptions } from './offline-schema.js'

/** What a stage brings to the shared run. */
export interface OfflineStage {
  readonly prepared: PreparedRun
  /** Measures the held-out rows; absent: the data has none. */
  readonly heldOut?: HeldOutMeasure | undefined
  /** How a step's batches are filled and measured; by default they are documents with target tokens. */
  readonly hooks?: Pick<OfflineLoopOptions, 'lossUnits' | 'prepareStep' | 'measureStep'>
  readonly samples?: SampleOptions | undefined
}

export interface HeldOutMeasure {
  readonly rows: number
  /** @param onProgress told how many rows are done */
  run(onProgress: (done: number) => void): Promise<{ loss: number; metrics: Record<string, number> }>
}

export interface SampleOptions {
  readonly prompts: readonly string[]
  readonly everySteps: number
  readonly maxNewTokens: number
}

/** The part of `PrepareOptions` that follows from the common fields. */
export function preparation(
  context: RunContext,
  options: OfflineOptions,
): Omit<PrepareOptions, 'objective' | 'packing' | 'rows'> {
  return {
    maxLength: options.maxLength,
    shuffle: options.shuffle,
    microBatchSize: options.microBatchSize,
    gradientAccumulationSteps: options.gradientAccumulationSteps,
    epochs: options.epochs,
    maxSteps: options.maxSteps,
    seed: options.seed,
    startAdapter: options.startAdapter,
    precision: options.precision,
    recompute: options.recompute,
    memoryBudgetMb: options.memoryBudgetMb,
    maxEvaluationRows: options.evaluation.maxRows,
    signal: context.signal,
  }
}

/** What `evaluation` of the recipe comes to on this data; undefined without held-out rows. */
function evaluationPlan(
  context: RunContext,
  options: OfflineOptions,
  heldOut: HeldOutMeasure | undefined,
): EvaluationPlan | undefined {
  if (!heldOut) {
    if (options.evaluation.everySteps > 0 || options.earlyStopping) {
      throw new Error(
        'stage.evaluation asks for evaluations and the data has no held-out rows: give it a held-out split',
      )
    }
    return undefined
  }
  const { metric, everySteps, atStart, atEnd } = options.evaluation
  const total = heldOut.rows
  return {
    everySteps,
    atStart,
    atEnd,
    metric,
    greaterIsBetter: metric !== 'loss' && !metric.endsWith('/loss'),
    earlyStopping: options.earlyStopping,
    async run() {
      const measured = await heldOut.run((done) =>
        context.emit({ type: 'progress', task: 'evaluating', done: Math.min(total, done), total, unit: 'rows' }),
      )
      if (metric !== 'loss' && !(metric in measured.metrics)) {
        const known = ['loss', ...Object.keys(measured.metrics)].join(', ')
        throw new Error(`stage.evaluation.metric: ${metric} is not measured on this data; measured are ${known}`)
      }
      return measured
    },
  }
}

/** The checkpoint to continue from, checked against this run. */
function findCheckpoint(context: RunContext, folder: string, isa: string): LoadedCheckpoint | undefined {
  if (!context.resume) return undefined
  const checkpoint = loadLatestCheckpoint(folder, {
    fallback: context.resume.fallback,
    onSkip: (error) => context.emit({ type: 'warning', message: error.message }),
  })
  if (!checkpoint) {
    context.emit({ type: 'warning', message: 'the run has no usable checkpoint yet: it starts from the beginning' })
    return undefined
  }
  if (checkpoint.isa !== isa) {
    context.emit({
      type: 'warning',
      message: `the checkpoint was written with ${checkpoint.isa} kernels and this process uses ${isa}: the run continues, but not bit for bit`,
    })
  }
  return checkpoint
}

/** Runs a stage from its start, or from where it was interrupted, to the exported adapter. Closes what it opened. */
export async function runOffline(
  context: RunContext,
  options: OfflineOptions,
  open: () => Promise<OfflineStage>,
): Promise<StageOutcome> {
  const runDir = context.runDir!
  const { prepared, heldOut, hooks, samples } = await open()
  try {
    const { program, loader, totalSteps } = prepared
    requireMemory(estimateMemory(program.plannedBytes))
    const folder = join(runDir, 'checkpoints')
    removeLeftovers(folder)
    const evaluation = evaluationPlan(context, options, heldOut)
    const checkpoint = findCheckpoint(context, folder, prepared.isa)
    if (checkpoint) {
      restoreProgram(checkpoint, program)
      loader.setState(checkpoint.state.loader)
    }
    const identity = {
      recipeHash: hashRecipe(context.recipe),
      layoutHash: hashLayout(program.layout),
      isa: prepared.isa,
      versions: prepared.versions,
    }
    const warmupSteps = options.warmupSteps < 1 ? Math.round(options.warmupSteps * totalSteps) : options.warmupSteps
    const schedule = { baseLearningRate: options.learningRate, warmupSteps, totalSteps }
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

    const sample = async (step: number, sources: readonly ('base' | 'adapter')[]) => {
      if (!samples || !prepared.generate) return
      const { maxNewTokens } = samples
      for (const prompt of samples.prompts) {
        for (const source of sources) {
          const text = await prepared.generate(prompt, { maxNewTokens, adapter: source === 'adapter' })
          context.emit({ type: 'sample', step, prompt, text, source })
        }
      }
    }
    if (!checkpoint) await sample(0, ['base'])

    const { optimizer } = options
    const result = await trainOffline({
      ...hooks,
      program,
      loader,
      totalSteps,
      learningRate: (step) => learningRateAt(step, options.schedule, schedule),
      optimizer: {
        beta1: optimizer.beta1,
        beta2: optimizer.beta2,
        epsilon: optimizer.epsilon,
        weightDecay: optimizer.weightDecay,
        maxGradNorm: options.maxGradNorm,
      },
      evaluation,
      checkpoint: {
        everySteps: options.checkpoint.everySteps,
        onBest: options.checkpoint.keepBest && evaluation !== undefined && options.evaluation.everySteps > 0,
        async save(state) {
          const path = await saveCheckpoint({ folder, program, state, identity, exportAdapter: prepared.exportAdapter })
          const { keepLast: last, keepBest: best } = options.checkpoint
          pruneCheckpoints(folder, { last, best }, state.evaluation.best?.step)
          return path
        },
      },
      emit: context.emit,
      async afterStep(step) {
        const every = samples?.everySteps ?? 0
        if (every > 0 && step % every === 0 && step < totalSteps) await sample(step, ['adapter'])
      },
      signal: context.signal,
      resume: checkpoint?.state,
      seed: options.seed,
      measureCeiling: prepared.measureCeiling,
      placesOf: prepared.placesOf,
    })

    const { first, last, best } = result.state.evaluation
    let after = last?.step === result.state.step ? last : undefined
    let adapter: string | undefined
    if (result.reason !== 'interrupted') {
      const wanted = options.export ?? (options.earlyStopping ? 'best' : 'last')
      if (wanted === 'best' && best && best.step !== result.state.step) {
        const entry = listCheckpoints(folder).find(({ step }) => step === best.step)
        if (entry) {
          restoreProgram(loadCheckpoint(entry.path), program)
          after = best
        } else {
          context.emit({
            type: 'warning',
            message: `the best weights (step ${best.step}) have no checkpoint: exporting the last`,
          })
        }
      }
      adapter = join(runDir, 'adapter')
      await writeFolder(adapter, prepared.exportAdapter)
      await sample(result.state.step, ['adapter'])
    }
    return {
      reason: result.reason,
      step: result.state.step,
      totalSteps,
      trainLoss: result.trainLoss,
      before: first?.step === 0 ? first : undefined,
      after,
      best,
      adapter,
      trainSeconds: result.trainSeconds,
      tokensPerSecond: result.tokensPerSecond,
    }
  } finally {
    await prepared.close()
  }
}

/** What a run would do and cost; closes what it opened. */
export async function planOffline(options: OfflineOptions, open: () => Promise<OfflineStage>): Promise<PlanReport> {
  const { prepared, hooks } = await open()
  try {
    const { everySteps, atStart, atEnd } = options.evaluation
    const between = everySteps > 0 ? Math.floor(prepared.totalSteps / everySteps) : 0
    const isLastBetween = everySteps > 0 && prepared.totalSteps % everySteps === 0
    const evaluations = between + (atStart ? 1 : 0) + (atEnd && !isLastBetween ? 1 : 0)
    return await planRun(prepared, { epochs: options.epochs, evaluations, probe: true, hooks })
  } finally {
    await prepared.close()
  }
}
