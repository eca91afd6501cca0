// The part of a recipe for proximal policy optimization with a value model.
import { z } from 'zod'
import { count } from './offline-schema.js'
import { checkOnline, onlineFields } from './online-schema.js'
import { checkReference, referenceSchema } from './reference-schema.js'

export const ppoSchema = z
  .strictObject({
    type: z.literal('ppo'),
    promptsPerStep: count.default(64),
    temperature: z.number().positive().default(0.7),
    reference: referenceSchema.optional(),
    klCoefficient: z.number().nonnegative().default(0.05).describe('weight of the divergence in the reward'),
    klEstimator: z.enum(['k1', 'k3']).default('k1'),
    adaptiveKl: z
      .strictObject({
        target: z.number().positive().default(6).describe('divergence of a completion, in nats'),
        horizon: count.default(10_000).describe('completions'),
      })
      .optional()
      .describe('moves klCoefficient towards a target'),
    gamma: z.number().min(0).max(1).default(1),
    lambda: z.number().min(0).max(1).default(0.95),
    clipRange: z.number().positive().default(0.2),
    clipRangeValue: z.number().positive().default(0.2),
    vfCoef: z.number().positive().default(0.1),
    whitenRewards: z.boolean().default(false),
    whitenAdvantages: z.boolean().default(true),
    missingEosPenalty: z
      .number()
      .nonnegative()
      .default(0)
      .describe('taken from the score of completions that do not end'),
    numPpoEpochs: count.default(4).describe('passes of updates over the completions of a step'),
    numMiniBatches: count.default(1),
    value: z
      .strictObject({
        startAdapter: z.string().min(1).optional().describe('a reward model to start from: a folder, or stage:NAME'),
        rank: count.optional().describe('of a fresh adapter; default that of the policy'),
        learningRate: z
          .number()
          .positive()
          .optional()
          .describe('of the value model, on the same schedule; default that of the policy'),
      })
      .prefault({}),
    learningRate: z.number().positive().default(1e-5),
    ...onlineFields,
  })
  .superRefine((stage, context) => {
    checkOnline(stage, context)
    checkReference(stage, true, (path, message) => context.addIssue({ code: 'custom', path, message }))
  })

export type PpoOptions = z.output<typeof ppoSchema>
