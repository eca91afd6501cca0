// Supervised fine-tuning (stop 8): cross-entropy over the target tokens of documents, through the offline loop.
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
import type { PreparedRun, RunContext, StageOutcome } from '../context.js'
import { evaluateChoices, evaluateLoss } from '../evaluate.js'
import { type EvaluationPlan, trainOffline } from '../loop.js'
import { estimateMemory, planRun, requireMemory } from '../plan.js'
import { hashRecipe, writeFolder } from '../run-directory.js'
import { learningRateAt } from '../schedules.js'
import { type SftOptions, sftSchema } from './sft-schema.js'
import { defineStage } from './stage.js'

function prepare(context: RunContext, options: SftOptions): Promise<PreparedRun> {
  return context.prepare({
    maxLength: options.maxLength,
    packing: options.packing,
    shuffle: options.shuffle,
    microBatchSize: options.microBatchSize,
    gradientAccumulationSteps: options.gradientAccumulationSteps,
    epochs: options.epochs,
    maxSteps: options.maxSteps,
    seed: options.seed,
    startAdapter: options.startAdapter,
    loss: options.loss,
    precision: options.precision,
    recompute: options.recompute,
    memoryBudgetMb: options.memoryBudgetMb,
    maxEvaluationRows: options.evaluation.maxRows,
    signal: context.signal,
  })
}

/** Held-out loss and, where rows have choices, accuracy; undefined without held-out rows. */
function evaluationPlan(context: RunContext, options: SftOptions, prepared: PreparedRun): EvaluationPlan | undefined {
  const { documents, choices } = prepared.heldOut
  if (documents.length + choices.length === 0) {
    if (options.evaluation.everySteps > 0 || options.earlyStopping) {
      throw new Error(
        'stage.evaluation asks for evaluations and the data has no held-out rows: give it a held-out split',
      )
    }
    return undefined
  }
  const { metric, everySteps, atStart, atEnd } = options.evaluation
  return {
    everySteps,
    atStart,
    atEnd,
    metric,
    greaterIsBetter: metric !== 'loss' && !metric.endsWith('/loss'),
    earlyStopping: options.earlyStopping,
    async run() {
      const total = documents.length + choices.length
      const with_ = (from: number) => ({
        maxTokens: prepared.maxTokens,
        signal: context.signal,
        onProgress: (done: number) =>
          context.emit({
            type: 'progress',
            task: 'evaluating',
            done: Math.min(total, from + done),
            total,
            unit: 'rows',
          }),
      })
      let nll = 0
      let tokens = 0
      const metrics: Record<string, number> = {}
      if (documents.length > 0) {
        const held = await evaluateLoss(prepared.program, documents, with_(0))
        nll += held.nllSum
        tokens += held.tokens
      }
      if (choices.length > 0) {
        const chosen = await evaluateChoices(prepared.program, choices, with_(documents.length))
        nll += chosen.loss * chosen.tokens
        tokens += chosen.tokens
        metrics['eval/accuracy'] = chosen.accuracy
        metrics['eval/rows'] = chosen.rows
      }
      const loss = tokens > 0 ? nll / tokens : Number.NaN
      if (metric !== 'loss' && !(metric in metrics)) {
        const known = ['loss', ...Object.keys(metrics)].join(', ')
        throw new Error(`stage.evaluation.metric: ${metric} is not measured on this data; measured are ${known}`)
      }
      return { loss, metrics: { ...metrics, 'eval/perplexity': Math.exp(loss) } }
    },
  }
}

/** The checkpoint to continue from, checked against this run. */
function findCheckpoint(context: RunContext, folder: string, prepared: PreparedRun): LoadedCheckpoint | undefined {
  if (!context.resume) return undefined
  const checkpoint = loadLatestCheckpoint(folder, {
    fallback: context.resume.fallback,
    onSkip: (error) => context.emit({ type: 'warning', message: error.message }),
  })
  if (!checkpoint) {
    context.emit({ type: 'warning', message: 'the run has no usable checkpoint yet: it starts from the beginning' })
    return undefined
  }
  if (checkpoint.isa !== prepared.isa) {
    context.emit({
      type: 'warning',
      message: `the checkpoint was written with ${checkpoint.isa} kernels and this process uses ${prepared.isa}: the run continues, but not bit for bit`,
    })
  }
  return checkpoint
}

async function run(context: RunContext, options: SftOptions): Promise<StageOutcome> {
  const runDir = context.runDir!
  const prepared = await prepare(context, options)
  try {
    const { program, loader, totalSteps } = prepared
    requireMemory(estimateMemory(program.plannedBytes))
    const folder = join(runDir, 'checkpoints')
    removeLeftovers(folder)
    const evaluation = evaluationPlan(context, options, prepared)
    const checkpoint = findCheckpoint(context, folder, prepared)
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
      if (!options.samples || !prepared.generate) return
      const { maxNewTokens } = options.samples
      for (const prompt of options.samples.prompts) {
        for (const source of sources) {
          const text = await prepared.generate(prompt, { maxNewTokens, adapter: source === 'adapter' })
          context.emit({ type: 'sample', step, prompt, text, source })
        }
      }
    }
    if (!checkpoint) await sample(0, ['base'])

    const { optimizer } = options
    const result = await trainOffline({
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
        const every = options.samples?.everySteps ?? 0
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

export const sft = defineStage({
  summary: 'supervised fine-tuning on documents, prompts with completions, or conversations',
  schema: sftSchema,
  run,
  async plan(context, options) {
    const prepared = await prepare(context, options)
    try {
      const { everySteps, atStart, atEnd } = options.evaluation
      const between = everySteps > 0 ? Math.floor(prepared.totalSteps / everySteps) : 0
      const isLastBetween = everySteps > 0 && prepared.totalSteps % everySteps === 0
      const evaluations = between + (atStart ? 1 : 0) + (atEnd && !isLastBetween ? 1 : 0)
      return await planRun(prepared, { epochs: options.epochs, evaluations, probe: true })
    } finally {
      await prepared.close()
    }
  },
})
