// Supervised fine-tuning on the chosen completions, as a term beside others.
import { z } from 'zod'
import { chosenNll } from './margins.js'
import { definePreferenceLoss } from './preference-loss.js'

export const sft = definePreferenceLoss({
  summary: 'mean negative log-likelihood of the chosen tokens',
  options: z.strictObject({}),
  needsReference: false,
  averagesTokens: true,
  // −Σ log π(c) / Σ n_c
  build: chosenNll,
})
