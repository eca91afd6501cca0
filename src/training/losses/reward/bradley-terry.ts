// The loss of a reward model over preference pairs (Bradley & Terry 1952; margins: Llama 2, arXiv 2307.09288).
import type { Value } from '../../../compiler/graph.js'
import { add, logSigmoid, neg, scale, square, sub } from '../../../compiler/ops/elementwise.js'

export interface RewardPairs {
  /** Scores of both completions [P]. */
  readonly chosen: Value
  readonly rejected: Value
  /** By how much the chosen score is to lead [P]; null: any lead will do. */
  readonly margin: Value | null
}

/**
 * Loss of each pair [P]: −ls(c − r − margin) + coefficient · (c + r)². The second term keeps scores around 0
 * (arXiv 2312.09244); 0 leaves it out.
 */
export function bradleyTerry({ chosen, rejected, margin }: RewardPairs, centerRewardsCoefficient: number): Value {
  const lead = sub(chosen, rejected)
  const loss = neg(logSigmoid(margin ? sub(lead, margin) : lead))
  if (centerRewardsCoefficient === 0) return loss
  return add(loss, scale(square(add(chosen, rejected)), centerRewardsCoefficient))
}
