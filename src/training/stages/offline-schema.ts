// What the stages over a dataset have in common in a recipe: how long, at what rate, in which batches, when to evaluate
// and to save; with the checks that one field alone cannot make.
import { z } from 'zod'
import { optimizerSchema } from '../optimizers.js'
import { scheduleSchema } from '../schedules.js'

export const count = z.int().positive()

export const evaluationSchema = z.strictObject({
  everySteps: z.int().nonnegative().default(0).describe('0: only at the start and the end'),
  atStart: z.boolean().default(true),
  atEnd: z.boolean().default(true),
  maxRows: count.optional().describe('use the first rows of the held-out split only'),
  metric: z
    .string()
    .default('loss')
    .describe('what best checkpoint and early stopping go by: loss, or a metric such as eval/accuracy'),
})

export const checkpointSchema = z.strictObject({
  everySteps: z.int().nonnegative().default(0).describe('0: only where the run ends or is interrupted'),
  keepLast: count.default(2),
  keepBest: z.boolean().default(true),
})

export const samplesSchema = z.strictObject({
  prompts: z.array(z.string().min(1)).min(1),
  everySteps: z.int().nonnegative().default(0).describe('0: only at the start and the end'),
  maxNewTokens: count.default(48),
})

/** Fields of every stage over a dataset; what a batch is made of and the rate are the stage's own. */
export const offlineFields = {
  epochs: z.number().positive().default(1),
  maxSteps: count.optional().describe('optimizer steps; wins over epochs'),
  schedule: scheduleSchema.default({ type: 'linear' }),
  warmupSteps: z.number().nonnegative().default(0).describe('steps, or below 1 a share of all steps'),
  optimizer: optimizerSchema.default({ type: 'adamw', beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 }),
  maxGradNorm: z.number().nonnegative().default(1).describe('0: no clipping'),
  gradientAccumulationSteps: count.default(1),
  shuffle: z.boolean().default(true),
  seed: z.int().nonnegative().default(0),
  startAdapter: z.string().optional().describe('a PEFT folder to start from instead of fresh LoRA weights'),
  evaluation: evaluationSchema.prefault({}),
  earlyStopping: z
    .strictObject({ patience: count, minDelta: z.number().nonnegative().default(0) })
    .optional()
    .describe('stop after this many evaluations in a row without improvement'),
  checkpoint: checkpointSchema.prefault({}),
  export: z
    .enum(['last', 'best'])
    .optional()
    .describe('which weights become the exported adapter; default best with earlyStopping, else last'),
  precision: z.enum(['fast', 'strict']).default('fast').describe('strict: fp32 arithmetic and activations'),
  recompute: z.enum(['auto', 'all', 'none']).default('auto'),
  memoryBudgetMb: count.optional().describe('for training buffers; default 60 % of free memory'),
} as const

export type OfflineOptions = z.output<z.ZodObject<typeof offlineFields>> & {
  readonly learningRate: number
  readonly microBatchSize: number
  readonly maxLength: number
}

/** Checks between the common fields. */
export function checkOffline(stage: OfflineOptions, context: z.RefinementCtx): void {
  const problem = (path: string[], message: string) => context.addIssue({ code: 'custom', path, message })
  const { evaluation, earlyStopping } = stage
  if (earlyStopping && evaluation.everySteps === 0) {
    problem(['earlyStopping'], 'earlyStopping needs evaluations to judge by: set evaluation.everySteps')
  }
  if (stage.export === 'best' && evaluation.everySteps === 0) {
    problem(['export'], "export 'best' needs evaluations to choose by: set evaluation.everySteps, or use 'last'")
  }
  if ((stage.export === 'best' || earlyStopping) && !stage.checkpoint.keepBest) {
    problem(['checkpoint', 'keepBest'], 'the best weights are exported from their checkpoint: keep it (keepBest: true)')
  }
  if (stage.warmupSteps >= 1 && !Number.isInteger(stage.warmupSteps)) {
    problem(['warmupSteps'], `${stage.warmupSteps} is neither whole steps nor a share below 1`)
  }
  if (stage.maxSteps !== undefined && stage.warmupSteps >= 1 && stage.warmupSteps >= stage.maxSteps) {
    problem(['warmupSteps'], `warm-up of ${stage.warmupSteps} steps leaves none of maxSteps ${stage.maxSteps}`)
  }
  if (stage.schedule.type === 'constant' && stage.warmupSteps > 0) {
    problem(['warmupSteps'], "schedule constant has no warm-up: use 'constant_with_warmup', or remove warmupSteps")
  }
  const decay = stage.schedule.numDecaySteps
  if (stage.maxSteps !== undefined && typeof decay === 'number' && decay + stage.warmupSteps > stage.maxSteps) {
    problem(['schedule', 'numDecaySteps'], `warm-up and decay take more than maxSteps ${stage.maxSteps}`)
  }
}
