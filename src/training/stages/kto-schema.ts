// The part of a recipe for preference optimization over single labelled completions (KTO).
import { z } from 'zod'
import { unpairedLosses, unpairedLossNames } from '../losses/unpaired/index.js'
import { checkOffline, count, offlineFields, samplesSchema } from './offline-schema.js'
import { cacheReferenceSchema, checkReference, referenceSchema } from './reference-schema.js'

export const ktoSchema = z
  .strictObject({
    type: z.literal('kto'),
    loss: z.enum(unpairedLossNames).default('kto'),
    beta: z.number().positive().default(0.1),
    desirableWeight: z.number().nonnegative().default(1),
    undesirableWeight: z.number().nonnegative().default(1),
    reference: referenceSchema.optional(),
    cacheReference: cacheReferenceSchema,
    learningRate: z.number().positive().default(1e-5),
    microBatchSize: count.default(4).describe('completions'),
    maxLength: z.int().min(2).default(1024).describe('tokens of prompt and completion'),
    ...offlineFields,
    samples: samplesSchema.optional(),
  })
  .superRefine((stage, context) => {
    checkOffline(stage, context)
    const problem = (path: string[], message: string) => context.addIssue({ code: 'custom', path, message })
    checkReference(stage, true, problem)
    if (unpairedLosses[stage.loss].needsKl && stage.microBatchSize * stage.gradientAccumulationSteps < 2) {
      problem(['microBatchSize'], 'the divergence is estimated on mismatched completions: a step needs two at least')
    }
  })

export type KtoOptions = z.output<typeof ktoSchema>
