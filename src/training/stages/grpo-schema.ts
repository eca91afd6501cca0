// The part of a recipe for group-relative policy optimization and its kin.
import { z } from 'zod'
import { rewardScalings } from '../online/group-advantages.js'
import { count } from './offline-schema.js'
import { checkOnline, onlineFields } from './online-schema.js'
import { checkReference, referenceSchema } from './reference-schema.js'

/** Losses over groups; `ppo` has a stage of its own. */
export const groupLosses = ['grpo', 'bnpo', 'dr_grpo', 'dapo', 'rloo', 'cispo', 'sapo', 'luspo'] as const

export const grpoSchema = z
  .strictObject({
    type: z.literal('grpo'),
    loss: z.enum(groupLosses).default('dapo'),
    promptsPerStep: count.default(8),
    numGenerations: z.int().min(2).default(8).describe('completions of each prompt, which are compared'),
    temperature: z.number().positive().default(1),
    scaleRewards: z.enum(rewardScalings).default('group').describe('what advantages are divided by'),
    importanceSamplingLevel: z.enum(['token', 'sequence']).default('token'),
    epsilonLow: z.number().nonnegative().default(0.2),
    epsilonHigh: z.number().positive().optional().describe('default epsilonLow; of cispo the cap of the ratio, 5'),
    delta: z.number().positive().optional().describe('cap of the unclipped ratio'),
    temperaturePos: z.number().positive().default(1).describe('of sapo'),
    temperatureNeg: z.number().positive().default(1.05).describe('of sapo'),
    beta: z.number().nonnegative().default(0).describe('weight of the divergence from the reference; 0: no reference'),
    biasCorrectedKl: z.boolean().default(true).describe('the divergence times the ratio'),
    reference: referenceSchema.optional(),
    maskTruncatedCompletions: z.boolean().default(false).describe('completions that did not end teach nothing'),
    normalizeAdvantages: z.boolean().default(false).describe('of rloo'),
    numIterations: count.default(1).describe('passes of updates over the completions of a step'),
    numMiniBatches: count.default(1),
    learningRate: z.number().positive().default(1e-5),
    ...onlineFields,
  })
  .superRefine((stage, context) => {
    checkOnline(stage, context)
    const problem = (path: string[], message: string) => context.addIssue({ code: 'custom', path, message })
    checkReference(stage, stage.beta > 0, problem)
    if (stage.loss === 'rloo' && stage.importanceSamplingLevel === 'sequence') {
      problem(['importanceSamplingLevel'], 'rloo is over the sum of a completion: remove it')
    }
  })

export type GrpoOptions = z.output<typeof grpoSchema>
