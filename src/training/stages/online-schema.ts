// What the online stages have in common in a recipe: prompts and sampling, rewards, updates, evaluation, checkpoints.
import { z } from 'zod'
import { optimizerSchema } from '../optimizers.js'
import { defaultInstruction } from '../rewards/judge-reward.js'
import type { RewardFunction } from '../rewards/reward.js'
import { scheduleSchema } from '../schedules.js'
import { checkpointSchema, count } from './offline-schema.js'

const seconds = z.number().positive()

const failureSchema = z
  .union([z.literal('stop'), z.strictObject({ score: z.number().nullable() })])
  .default('stop')
  .describe('stop the run with prompt and completion named, or count such a completion as this (null: not scored)')

const named = {
  name: z
    .string()
    .regex(/^[A-Za-z]\w*$/, 'letters, digits and underscores only: it names a metric')
    .optional(),
  weight: z.number().default(1),
}

export const rewardSpecSchema = z.union([
  z.strictObject({
    ...named,
    function: z
      .custom<RewardFunction>((value) => typeof value === 'function', 'must be a function of a completion')
      .describe('gives a number, or null for a completion that it does not score'),
    timeoutSeconds: seconds.default(30),
    onFailure: failureSchema,
  }),
  z.strictObject({ ...named, model: z.string().min(1).describe('folder of a reward model, or stage:NAME') }),
  z.strictObject({
    ...named,
    judge: z.strictObject({
      endpoint: z.url().describe('of an OpenAI-compatible server, up to /v1'),
      model: z.string().min(1),
      apiKeyVariable: z.string().min(1).optional().describe('environment variable that holds the key'),
      instruction: z
        .string()
        .default(defaultInstruction)
        .refine((text) => text.includes('{{completion}}'), 'must contain {{completion}}'),
      range: z.tuple([z.number(), z.number()]).default([0, 10]),
      concurrency: count.default(4),
      retries: z.int().nonnegative().default(3),
    }),
    timeoutSeconds: seconds.default(60),
    onFailure: failureSchema,
  }),
])
export type RewardSpec = z.output<typeof rewardSpecSchema>
export type RewardInput = z.input<typeof rewardSpecSchema>

/** Fields of every stage that samples; the rate, the losses and the shape of a step are the stage's own. */
export const onlineFields = {
  rewards: z.array(rewardSpecSchema).min(1).describe('summed with their weights'),
  epochs: z.number().positive().default(1).describe('passes over the prompts'),
  maxSteps: count.optional().describe('rounds of sampling and updates; wins over epochs'),
  maxPromptLength: count.default(512).describe('tokens'),
  promptTruncation: z
    .enum(['drop', 'keepEnd'])
    .default('drop')
    .describe('longer prompts are left out, or lose their beginning; both are counted'),
  maxCompletionLength: count.default(128),
  topK: z.int().nonnegative().default(0),
  topP: z.number().positive().max(1).default(1),
  schedule: scheduleSchema.default({ type: 'linear' }),
  warmupSteps: z.number().nonnegative().default(0).describe('steps, or below 1 a share of all steps'),
  optimizer: optimizerSchema.default({ type: 'adamw', beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 }),
  maxGradNorm: z.number().nonnegative().default(1).describe('0: no clipping'),
  microBatchSize: count.default(8).describe('completions whose gradients are computed at once'),
  shuffle: z.boolean().default(true),
  seed: z.int().nonnegative().default(0),
  startAdapter: z.string().optional().describe('a PEFT folder to start from instead of fresh LoRA weights'),
  evaluation: z
    .strictObject({
      everySteps: z.int().nonnegative().default(0).describe('0: only at the start and the end'),
      atStart: z.boolean().default(true),
      atEnd: z.boolean().default(true),
      maxRows: count.default(64).describe('held-out prompts, the first ones'),
    })
    .prefault({}),
  checkpoint: checkpointSchema.omit({ keepBest: true }).prefault({}),
  precision: z.enum(['fast', 'strict']).default('fast').describe('strict: fp32 arithmetic and activations'),
  recompute: z.enum(['auto', 'all', 'none']).default('auto'),
  memoryBudgetMb: count.optional().describe('for training buffers; default 60 % of free memory'),
} as const

export type OnlineOptions = z.output<z.ZodObject<typeof onlineFields>>

/** Checks between the common fields. */
export function checkOnline(
  stage: Pick<OnlineOptions, 'warmupSteps' | 'maxSteps' | 'schedule'>,
  context: z.RefinementCtx,
): void {
  const problem = (path: string[], message: string) => context.addIssue({ code: 'custom', path, message })
  if (stage.warmupSteps >= 1 && !Number.isInteger(stage.warmupSteps)) {
    problem(['warmupSteps'], `${stage.warmupSteps} is neither whole steps nor a share below 1`)
  }
  if (stage.maxSteps !== undefined && stage.warmupSteps >= 1 && stage.warmupSteps >= stage.maxSteps) {
    problem(['warmupSteps'], `warm-up of ${stage.warmupSteps} steps leaves none of maxSteps ${stage.maxSteps}`)
  }
  if (stage.schedule.type === 'constant' && stage.warmupSteps > 0) {
    problem(['warmupSteps'], "schedule constant has no warm-up: use 'constant_with_warmup', or remove warmupSteps")
  }
}
