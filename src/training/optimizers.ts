// Optimizers a recipe can name (stop 8), with their options; the arithmetic is the op of the same name.
import { z } from 'zod'

export const optimizers = {
  /** Decoupled weight decay, bias-corrected (Loshchilov & Hutter, arXiv:1711.05101), as torch.optim.AdamW. */
  adamw: z.strictObject({
    type: z.literal('adamw'),
    beta1: z.number().min(0).lt(1).default(0.9),
    beta2: z.number().min(0).lt(1).default(0.999),
    epsilon: z.number().positive().default(1e-8),
    weightDecay: z.number().nonnegative().default(0),
  }),
} as const

export const optimizerSchema = z.discriminatedUnion('type', [optimizers.adamw])
export type OptimizerOptions = z.infer<typeof optimizerSchema>
