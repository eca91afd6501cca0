// Dropout whose mask is a pure function of seed, row key, module and column, so that recomputation, resumption and
// repacking draw the same numbers (design §3). The hash is stated in kernels/ops/dropout.cc.

import type { Value } from '../graph.js'
import { defineOp, type OpDefinition, type RealNumber, real } from '../op.js'
import { add, bitwiseAnd, bitwiseXor, cast, div, greaterOrEqual, mul, scale } from './elementwise.js'
import { unsqueeze } from './shape.js'
import { need, staticDim } from './shape-rules.js'
import { constant, scalar } from './tensor.js'

type DropoutAttributes = { p: RealNumber; module: number }

const WORD = 2 ** 32

/** Mixes one word into a key. Arithmetic modulo 2³² in i64: every intermediate stays below 2⁶³, and shifts are divisions of numbers above 0. */
export function hashStep(key: Value, word: Value): Value {
  const int = (n: number) => scalar(key.graph, n, 'i64')
  const low = (x: Value) => bitwiseAnd(x, int(WORD - 1))
  const fold = (x: Value, shift: number) => bitwiseXor(x, div(x, int(2 ** shift)))
  let x = low(add(bitwiseXor(key, word), int(0x9e3779b9)))
  x = low(mul(fold(x, 16), int(0x21f0aaad)))
  x = low(mul(fold(x, 15), int(0x735a2d97)))
  return fold(x, 15)
}

/** The low and high 32 bits of numbers from 0 to 2⁶³ − 1. */
export const halves = (value: Value): readonly [Value, Value] => [
  bitwiseAnd(value, scalar(value.graph, WORD - 1, 'i64')),
  div(value, scalar(value.graph, WORD, 'i64')),
]

export const Dropout: OpDefinition<DropoutAttributes> = defineOp<DropoutAttributes>({
  opType: 'Dropout',
  domain: 'espalier',
  activationOutputs: [0],
  activationInputs: [0],
  infer: ([x]) => [need(x, 'Dropout x')],
  // kept iff hash(seed, rowKey, module, column) ≥ ⌊p 2³²⌋; kept entries times 1/(1 − p)
  lower(g, [x, rowKeys, seed], { p, module }) {
    const width = staticDim(x!.shape[1], 'Dropout x')
    const int = (n: number) => scalar(g, n, 'i64')
    const rows = halves(unsqueeze(rowKeys!, [1])) // [N, 1]
    let key = int(0)
    for (const word of [...halves(seed!), ...rows, int(module)]) key = hashStep(key, word)
    const columns = constant(
      g,
      Array.from({ length: width }, (_, i) => i),
      [1, width],
      'i64',
    )
    const probability = Math.fround(p.real)
    const isKept = greaterOrEqual(hashStep(key, columns), int(Math.floor(probability * WORD)))
    return [mul(x!, scale(cast(isKept, x!.dtype), Math.fround(1 / (1 - probability))))]
  },
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
