// Dropout whose mask is a pure function of seed, row key, module and column, so that recomputation, resumption and
// repacking draw the same numbers (design §3). No lowering: integer hashing is not portable across providers.
import { real, type RealNumber, defineOp, type OpDefinition } from '../op.js'
import type { Value } from '../graph.js'
import { need } from './shape-rules.js'

type DropoutAttributes = { p: RealNumber; module: number }

export const Dropout: OpDefinition<DropoutAttributes> = defineOp<DropoutAttributes>({
  opType: 'Dropout',
  domain: 'espalier',
  activationOutputs: [0],
  activationInputs: [0],
  infer: ([x]) => [need(x, 'Dropout x')],
  // The same mask and factor on the incoming gradient.
  gradient(c) {
    const [, rowKeys, seed] = c.node.inputs as [Value, Value, Value]
    const dX: Value[] = c.graph.apply(Dropout, [c.dOutputs[0]!, rowKeys, seed], c.node.attributes as DropoutAttributes)
    return [dX[0]!, null, null]
  },
})

/** x [N, K], rowKeys i64 [N], seed i64 [1] -> x with entries dropped and the rest scaled by 1/(1 − p). */
export function dropout(x: Value, random: { rowKeys: Value; seed: Value; probability: number; module: number }): Value {
  return x.graph.apply(Dropout, [x, random.rowKeys, random.seed], {
    p: real(random.probability),
    module: random.module,
  })[0]!
}
