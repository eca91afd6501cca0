// WPO (arXiv 2406.11827): pairs count by how likely the policy itself finds both completions, as a stand-in for sampling
// them from it.
import type { Value } from '../../../compiler/graph.js'
import { add, cast, div, exp, greater, max, stopGradient, sub } from '../../../compiler/ops/elementwise.js'
import { reduceSum } from '../../../compiler/ops/reduce.js'
import { scalar } from '../../../compiler/ops/tensor.js'
import { sumBySequence } from './sequence-sums.js'

/**
 * Token log-probabilities and log Σ_v p_v² [M], membership of the rows in both completions [P, M] -> weights [P],
 * without a gradient. Only whether a row belongs is read of the membership, not its weight.
 */
export function wpoWeights(tokens: {
  readonly logps: Value
  readonly logSumSquares: Value
  readonly chosenRows: Value
  readonly rejectedRows: Value
}): Value {
  const { graph, dtype } = tokens.logps
  // How likely a token is, against one that the policy samples
  const relative = sub(tokens.logps, tokens.logSumSquares) // [M]
  const mean = (rows: Value) => {
    const belongs = cast(greater(rows, scalar(graph, 0, rows.dtype)), dtype) // [P, M]
    const count = max(reduceSum(belongs, [1]), scalar(graph, 1, dtype)) // [P]
    return div(sumBySequence(belongs, relative), count)
  }
  // w_c w_r = e^(mean_t over c) · e^(mean_t over r)
  return stopGradient(exp(add(mean(tokens.chosenRows), mean(tokens.rejectedRows))))
}
