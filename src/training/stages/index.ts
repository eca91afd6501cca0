// The stages that a recipe can name; recipe schema, types and help derive from this map.
import { z } from 'zod'
import { dpo } from './dpo.js'
import { kto } from './kto.js'
import { reward } from './reward.js'
import { sft } from './sft.js'

export const stages = { sft, reward, dpo, kto } as const
export type StageName = keyof typeof stages

/** The `stage` of a recipe, by its `type`. */
export const stageSchema = z.discriminatedUnion('type', [sft.schema, reward.schema, dpo.schema, kto.schema])
export type StageOptions = z.output<typeof stageSchema>
