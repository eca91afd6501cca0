// The stages that a recipe can name; recipe schema, types and help derive from this map.
import { z } from 'zod'
import { dpo } from './dpo.js'
import { grpo } from './grpo.js'
import { kto } from './kto.js'
import { ppo } from './ppo.js'
import { reward } from './reward.js'
import { sft } from './sft.js'

export const stages = { sft, reward, dpo, kto, ppo, grpo } as const
export type StageName = keyof typeof stages

/** The `stage` of a recipe, by its `type`. */
export const stageSchema = z.discriminatedUnion('type', [
  sft.schema,
  reward.schema,
  dpo.schema,
  kto.schema,
  ppo.schema,
  grpo.schema,
])
export type StageOptions = z.output<typeof stageSchema>
