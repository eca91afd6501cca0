// The policy-gradient losses that a recipe can name, and how each becomes the loss of every token.
import type { Value } from '../../../compiler/graph.js'
import { add, mul, scale } from '../../../compiler/ops/elementwise.js'
import { bnpo } from './bnpo.js'
import { cispo } from './cispo.js'
import { dapo } from './dapo.js'
import { drGrpo } from './dr-grpo.js'
import { grpo } from './grpo.js'
import { luspo } from './luspo.js'
import type { PolicyLoss, PolicyLossOptions, RatioLevel } from './policy-loss.js'
import { ppo } from './ppo.js'
import { rloo } from './rloo.js'
import { sapo } from './sapo.js'
import { importanceRatio, k3 } from './surrogate.js'

export const policyLosses = {
  ppo,
  grpo,
  bnpo,
  dr_grpo: drGrpo,
  dapo,
  rloo,
  cispo,
  sapo,
  luspo,
} satisfies Record<string, PolicyLoss>

export type PolicyLossName = keyof typeof policyLosses
export const policyLossNames = Object.keys(policyLosses) as [PolicyLossName, ...PolicyLossName[]]

export interface PolicyObjectiveOptions extends PolicyLossOptions {
  readonly loss: PolicyLossName
  /** Of losses that leave the level open. */
  readonly level: RatioLevel
  /** Weight of the divergence from the reference in the loss; 0: none. */
  readonly beta: number
  /** The divergence times the ratio, so that its expectation is under the policy in training. */
  readonly biasCorrectedKl: boolean
}

export interface PolicyInputs {
  /** [M] */
  readonly logps: Value
  readonly oldLogps: Value
  readonly refLogps: Value | null
  readonly advantages: Value
  /** [Q, M] and [Q] */
  readonly membership: Value
  readonly lengths: Value
}

export const levelOf = ({ loss, level }: Pick<PolicyObjectiveOptions, 'loss' | 'level'>): RatioLevel =>
  (policyLosses[loss] as PolicyLoss).level ?? level

/** Loss of each token [M], the divergence included, before its weight. */
export function buildPolicyLoss(inputs: PolicyInputs, options: PolicyObjectiveOptions): Value {
  const { logps, oldLogps, refLogps, advantages } = inputs
  const ratio = importanceRatio(logps, oldLogps, levelOf(options), inputs)
  const loss = (policyLosses[options.loss] as PolicyLoss).tokenLoss({ logps, ratio, advantages }, options)
  if (options.beta === 0) return loss
  if (!refLogps) throw new Error('a divergence in the loss needs the log-probabilities of the reference')
  const kl = k3(logps, refLogps)
  return add(loss, scale(options.biasCorrectedKl ? mul(kl, ratio) : kl, options.beta))
}
