// The objectives of online training over the tokens of sampled completions: the policy's, and the value model's.
import { mul } from '../../compiler/ops/elementwise.js'
import { reduceSum } from '../../compiler/ops/reduce.js'
import { buildPolicyLoss, type PolicyObjectiveOptions } from '../losses/policy/index.js'
import { valueLoss } from '../losses/policy/value-loss.js'
import type { Objective } from '../objective.js'
import type { MicroBatch } from '../program.js'

/** Inputs of both, [M] each but for `membership` [Q, M] and `lengths` [Q]. */
export const policyInputs = {
  oldLogps: 'oldLogps',
  refLogps: 'refLogps',
  advantages: 'advantages',
  tokenWeights: 'tokenWeights',
  membership: 'membership',
  lengths: 'lengths',
  oldValues: 'oldValues',
  returns: 'returns',
} as const

/** Σ weight · loss over tokens; log-probabilities at the temperature of sampling. */
export function policyObjective(options: PolicyObjectiveOptions & { temperature: number }): Objective {
  return {
    head: 'logProbs',
    temperature: options.temperature,
    build({ logps, input }) {
      const perToken = (name: string) => input(name, ['M'])
      const losses = buildPolicyLoss(
        {
          logps,
          oldLogps: perToken(policyInputs.oldLogps),
          refLogps: options.beta > 0 ? perToken(policyInputs.refLogps) : null,
          advantages: perToken(policyInputs.advantages),
          membership: input(policyInputs.membership, ['Q', 'M']),
          lengths: input(policyInputs.lengths, ['Q']),
        },
        options,
      )
      return reduceSum(mul(losses, perToken(policyInputs.tokenWeights)), [0])
    },
  }
}

/** Σ weight · clipped squared error over tokens. */
export function valueObjective(options: { clipRange: number }): Objective {
  return {
    head: 'score',
    build({ scores, input }) {
      const perToken = (name: string) => input(name, ['M'])
      const errors = valueLoss(
        scores,
        perToken(policyInputs.oldValues),
        perToken(policyInputs.returns),
        options.clipRange,
      )
      return reduceSum(mul(errors, perToken(policyInputs.tokenWeights)), [0])
    },
  }
}

/** A micro-batch of completions with token values and which of its tokens count for which completion. */
export function fillTokens(
  batch: MicroBatch,
  lengths: readonly number[],
  inputs: Record<string, Float32Array>,
): MicroBatch {
  const tokens = lengths.reduce((a, b) => a + b, 0)
  const membership = new Float32Array(lengths.length * tokens)
  let at = 0
  for (const [q, length] of lengths.entries()) {
    membership.fill(1, q * tokens + at, q * tokens + at + length)
    at += length
  }
  return {
    ...batch,
    dims: { Q: lengths.length },
    inputs: {
      [policyInputs.membership]: membership,
      [policyInputs.lengths]: Float32Array.from(lengths),
      ...inputs,
    },
  }
}
