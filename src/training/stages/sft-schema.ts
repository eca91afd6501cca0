// The supervised stage's part of a recipe: strict, with defaults.
import { z } from 'zod'
import { lossNames } from '../losses/index.js'
import { checkOffline, count, offlineFields, samplesSchema } from './offline-schema.js'

export const sftSchema = z
  .strictObject({
    type: z.literal('sft'),
    loss: z.enum(lossNames).default('crossEntropy'),
    learningRate: z.number().positive().default(2e-4),
    microBatchSize: count.default(1).describe('packs of maxLength when packing, documents otherwise'),
    maxLength: z.int().min(2).default(1024).describe('tokens of a document; longer ones are truncated and counted'),
    packing: z.boolean().default(true).describe('lay short documents end to end, isolated from each other'),
    ...offlineFields,
    samples: samplesSchema.optional(),
  })
  .superRefine(checkOffline)

export type SftOptions = z.output<typeof sftSchema>
