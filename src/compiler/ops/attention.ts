// Causal grouped-query attention over packed documents (flash attention: arXiv 2205.14135, 2307.08691). The lowering
// holds the N×N scores; the kernel never does.
import type { Dim, Value } from '../graph.js'
import { defineOp, type RealNumber, real } from '../op.js'
import { add, and, cast, equal, exp, greaterOrEqual, less, log, scale, sub, where } from './elementwise.js'
import { matMul, softmax } from './linear-algebra.js'
import { reduceMax, reduceSum } from './reduce.js'
import { repeatHeads, reshape, rowIndices, transpose, unsqueeze } from './shape.js'
import { need } from './shape-rules.js'
import { scalar } from './tensor.js'

export interface AttentionShape {
  readonly numHeads: number
  readonly numKeyValueHeads: number
  readonly headDim: number
  /** Tokens a query sees, itself included; 0: all before it. */
  readonly window?: number
  /** Default 1/√headDim. */
  readonly scale?: number
}

type AttentionAttributes = {
  num_heads: number
  num_kv_heads: number
  head_dim: number
  window: number
  strict: number
  scale: RealNumber
}

/** bool [1, N, N]: key j is visible to query i. */
function visible(x: Value, cuSeqlens: Value, window: number): Value {
  const g = x.graph
  const rows = rowIndices(x) // [N]
  const i = unsqueeze(rows, [1])
  const j = unsqueeze(rows, [0])
  // The document of a row: how many documents start at or before it.
  const starts = greaterOrEqual(i, unsqueeze(cast(cuSeqlens, 'i64'), [0])) // [N, S]
  const document = reduceSum(cast(starts, 'i64'), [1]) // [N]
  let mask = and(greaterOrEqual(i, j), equal(unsqueeze(document, [1]), unsqueeze(document, [0])))
  if (window > 0) mask = and(mask, less(sub(i, j), scalar(g, window, 'i64')))
  return unsqueeze(mask, [0])
}

export const Attention = defineOp<AttentionAttributes>({
  opType: 'Attention',
  domain: 'espalier',
  activationInputs: [0, 1, 2],
  activationOutputs: [0],
  infer([q], { num_heads }) {
    const query = need(q, 'Attention q')
    return [query, { dtype: query.graph.floatType === 'f64' ? 'f64' : 'f32', shape: [query.shape[0]!, num_heads] }]
  },
  lower(g, [q, k, v, cuSeqlens], a) {
    const n = q!.shape[0] as Dim
    const group = a.num_heads / a.num_kv_heads
    const heads = (x: Value, count: number) => reshape(x, [n, count, a.head_dim])
    const queries = transpose(heads(q!, a.num_heads), [1, 0, 2]) // [H, N, Dh]
    const keys = transpose(repeatHeads(heads(k!, a.num_kv_heads), group), [1, 2, 0]) // [H, Dh, N]
    const values = transpose(repeatHeads(heads(v!, a.num_kv_heads), group), [1, 0, 2])
    const scores = scale(matMul(queries, keys), a.scale.real) // [H, N, N]
    const masked = where(visible(q!, cuSeqlens!, a.window), scores, scalar(g, -1e30, g.floatType))
    const out = transpose(matMul(softmax(masked), values), [1, 0, 2]) // [N, H, Dh]
    const top = reduceMax(masked, [2], true)
    const lse = add(log(reduceSum(exp(sub(masked, top)), [2])), reshape(top, [a.num_heads, n]))
    return [reshape(out, q!.shape), transpose(lse)]
  },
  // Recomputes the probabilities by tiles from lse; D = Σ dO ∘ O.
  gradient(c) {
    if (c.dOutputs[1]) throw new Error('Attention: lse has no gradient')
    const [q, k, v, cuSeqlens] = c.node.inputs as [Value, Value, Value, Value]
    const [out, lse] = c.node.outputs as [Value, Value]
    const grads = c.graph.apply(
      AttentionGrad,
      [q, k, v, out, lse, c.dOutputs[0]!, cuSeqlens],
      c.node.attributes as AttentionAttributes,
    )
    return [...grads, null]
  },
  flops: (node, dims) => attentionFlops(node.inputs[0]!, dims, 2),
})

export const AttentionGrad = defineOp<AttentionAttributes>({
  opType: 'AttentionGrad',
  domain: 'espalier',
  activationInputs: [0, 1, 2, 3, 5],
  activationOutputs: [0, 1, 2],
  infer: ([q, k, v]) => [need(q, 'dQ'), need(k, 'dK'), need(v, 'dV')],
  gradient: 'unsupported',
  flops: (node, dims) => attentionFlops(node.inputs[0]!, dims, 4),
})

/** Matrix products over the causal half, as one document. */
function attentionFlops(q: Value, dims: Readonly<Record<string, number>>, products: number): number {
  const n = typeof q.shape[0] === 'string' ? (dims[q.shape[0]] ?? 1) : q.shape[0]!
  return products * n * n * (q.shape[1] as number)
}

/** q [N, H·Dh], k and v [N, K·Dh], cuSeqlens i32 [documents + 1] -> [N, H·Dh]. */
export function attention(q: Value, k: Value, v: Value, cuSeqlens: Value, shape: AttentionShape): Value {
  return q.graph.apply(Attention, [q, k, v, cuSeqlens], {
    num_heads: shape.numHeads,
    num_kv_heads: shape.numKeyValueHeads,
    head_dim: shape.headDim,
    window: shape.window ?? 0,
    strict: q.graph.strict ? 1 : 0,
    scale: real(shape.scale ?? 1 / Math.sqrt(shape.headDim)),
  })[0]!
}
