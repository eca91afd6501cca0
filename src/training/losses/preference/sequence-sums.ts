// Sums over the tokens of each completion, where rows of several lie end to end (design §3: ragged everywhere).
import type { Value } from '../../../compiler/graph.js'
import { matMul } from '../../../compiler/ops/linear-algebra.js'
import { reshape, unsqueeze } from '../../../compiler/ops/shape.js'

/** Membership [P, M], the weight of row m in sequence p (0 elsewhere), and a value of each row [M] -> [P]. */
export function sumBySequence(membership: Value, values: Value): Value {
  return reshape(matMul(membership, unsqueeze(values, [1])), [membership.shape[0]!])
}
