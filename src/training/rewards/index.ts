// Reward sources from what a recipe says.

import type { Scorer } from '../scorer.js'
import type { RewardSpec } from '../stages/online-schema.js'
import { functionReward } from './function-reward.js'
import { judgeReward } from './judge-reward.js'
import { modelReward } from './model-reward.js'
import type { RewardSource } from './reward.js'

/** A name for each source, those given kept, the others by kind and number. @throws where two are the same */
export function namesOf(specs: readonly RewardSpec[]): string[] {
  const kindOf = (spec: RewardSpec) =>
    'function' in spec ? spec.function.name || 'function' : 'model' in spec ? 'model' : 'judge'
  const kinds = specs.map(kindOf)
  const names = specs.map((spec, i) => {
    if (spec.name) return spec.name
    const same = kinds.filter((kind) => kind === kinds[i]).length > 1
    return same ? `${kinds[i]}${kinds.slice(0, i + 1).filter((kind) => kind === kinds[i]).length}` : kinds[i]!
  })
  const twice = names.find((name, i) => names.indexOf(name) !== i)
  if (twice !== undefined) throw new Error(`two rewards are named ${twice}: give each its own name`)
  return names
}

/** @param openModel a scorer of the reward model in a folder */
export async function openRewards(
  specs: readonly RewardSpec[],
  models: { open(folder: string): Promise<Scorer>; most: { readonly maxTokens: number; readonly size: number } },
): Promise<RewardSource[]> {
  const names = namesOf(specs)
  const sources: RewardSource[] = []
  try {
    for (const [i, spec] of specs.entries()) {
      const common = { name: names[i]!, weight: spec.weight }
      if ('model' in spec) {
        sources.push(modelReward({ ...common, scorer: await models.open(spec.model), most: models.most }))
        continue
      }
      const guard = { timeoutMs: spec.timeoutSeconds * 1000, onFailure: spec.onFailure }
      if ('function' in spec) sources.push(functionReward({ ...common, ...guard, run: spec.function }))
      else sources.push(judgeReward({ ...common, ...guard, ...spec.judge }))
    }
    return sources
  } catch (error) {
    for (const source of sources) source.close?.()
    throw error
  }
}
