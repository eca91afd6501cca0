// The losses over single labelled completions that a recipe can name.
import { apoZeroUnpaired } from './apo-zero-unpaired.js'
import { kto } from './kto.js'
import type { UnpairedLoss } from './unpaired-loss.js'

export const unpairedLosses = {
  kto,
  apo_zero_unpaired: apoZeroUnpaired,
} satisfies Record<string, UnpairedLoss>

export type UnpairedLossName = keyof typeof unpairedLosses
export const unpairedLossNames = Object.keys(unpairedLosses) as [UnpairedLossName, ...UnpairedLossName[]]
