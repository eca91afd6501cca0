// The preference stage's part of a recipe: DPO and its family over pairs.
import { z } from 'zod'
import { preferenceLossSchema, termsOf } from '../losses/preference/index.js'
import { needsOf } from '../objectives/preference.js'
import { checkOffline, count, offlineFields, samplesSchema } from './offline-schema.js'
import { cacheReferenceSchema, checkReference, referenceSchema } from './reference-schema.js'

export const dpoSchema = z
  .strictObject({
    type: z.literal('dpo'),
    loss: preferenceLossSchema
      .prefault('sigmoid')
      .describe('a loss, a loss with its options, or a mixture of such with weights'),
    beta: z.number().positive().default(0.1),
    reference: referenceSchema.optional(),
    cacheReference: cacheReferenceSchema,
    ldAlpha: z
      .number()
      .min(0)
      .max(1)
      .default(1)
      .describe('weight of the tokens beyond the shorter completion (LD-DPO); 1: none'),
    useWeighting: z.boolean().default(false).describe('weigh pairs by how likely the policy finds them (WPO)'),
    learningRate: z.number().positive().default(1e-5),
    microBatchSize: count.default(2).describe('pairs'),
    maxLength: z.int().min(2).default(1024).describe('tokens of each of the two sequences'),
    ...offlineFields,
    samples: samplesSchema.optional(),
  })
  .superRefine((stage, context) => {
    checkOffline(stage, context)
    const problem = (path: string[], message: string) => context.addIssue({ code: 'custom', path, message })
    const needs = needsOf(termsOf(stage.loss))
    checkReference(stage, needs.reference, problem)
    if (stage.cacheReference && !needs.reference) {
      problem(['cacheReference'], 'this loss compares with no reference model: remove it')
    }
    if (needs.couplesPairs && stage.gradientAccumulationSteps > 1) {
      problem(
        ['gradientAccumulationSteps'],
        'this loss compares pairs of a whole step with each other: raise microBatchSize instead',
      )
    }
  })

export type DpoOptions = z.output<typeof dpoSchema>
