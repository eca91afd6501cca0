// The reward stage's part of a recipe.
import { z } from 'zod'
import { checkOffline, count, offlineFields } from './offline-schema.js'

export const rewardSchema = z
  .strictObject({
    type: z.literal('reward'),
    learningRate: z.number().positive().default(1e-4),
    microBatchSize: count.default(4).describe('pairs'),
    maxLength: z.int().min(2).default(1024).describe('tokens of each of the two sequences'),
    centerRewardsCoefficient: z
      .number()
      .nonnegative()
      .default(0)
      .describe('weight of (chosen + rejected)², which keeps scores around 0; 0.01 is usual'),
    useMargin: z.boolean().default(false).describe('the chosen score is to lead by the margin of the row'),
    ...offlineFields,
  })
  .superRefine(checkOffline)

export type RewardStageOptions = z.output<typeof rewardSchema>
