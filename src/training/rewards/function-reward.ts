// Rewards from functions in TypeScript.
import { type FailurePolicy, guarded, type RewardFunction, type RewardSource, untilOneFails } from './reward.js'

export interface FunctionRewardOptions {
  readonly name: string
  readonly weight: number
  readonly run: RewardFunction
  readonly timeoutMs: number
  readonly onFailure: FailurePolicy
}

/** Calls at once for all completions; a function that waits is not waited for one by one. */
export function functionReward(options: FunctionRewardOptions): RewardSource {
  return {
    name: options.name,
    weight: options.weight,
    score: (completions, _, signal) =>
      untilOneFails(signal, (shared) =>
        completions.map((one) => guarded(options, one, shared, (own) => options.run(one, own))),
      ),
  }
}
