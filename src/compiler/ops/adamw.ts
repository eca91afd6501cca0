// AdamW over the flat buffer with global-norm clipping (arXiv 1711.05101; torch.optim.AdamW).
import type { Value } from '../graph.js'
import { defineOp } from '../op.js'
import { add, and, div, greater, less, min, mul, sqrt, sub, where } from './elementwise.js'
import { reduceSum } from './reduce.js'
import { concat, expandLike, reshape, slice } from './shape.js'
import { need } from './shape-rules.js'
import { scalar } from './tensor.js'

/** Positions in the `hyper` input, f32 [8]. */
export const adamWHyper = {
  learningRate: 0,
  beta1: 1,
  beta2: 2,
  epsilon: 3,
  biasCorrection1: 4,
  biasCorrection2: 5,
  maxGradNorm: 6,
} as const

type AdamAttributes = { groupList: readonly number[] }

export const AdamW = defineOp<AdamAttributes>({
  opType: 'AdamW',
  domain: 'espalier',
  hidden: ['groupList'],
  mutates: { 0: 0, 1: 2, 2: 3 },
  infer([params, , m, v]) {
    const p = need(params, 'AdamW params')
    return [p, need(m, 'AdamW m'), need(v, 'AdamW v'), { dtype: p.dtype, shape: [1] }]
  },
  gradient: 'unsupported',
  // g ← g min(1, c/(‖g‖+1e-6)); m, v moments; p ← p(1 − lr wd) − lr/(1−β₁ᵗ) m/(√v/√(1−β₂ᵗ) + ε). A norm that is not
  // finite changes nothing.
  lower(graph, [params, grads, m, v, hyper, , groupHyper], { groupList }) {
    const at = (i: number) => slice(hyper!, 0, i, i + 1)
    const one = scalar(graph, 1, params!.dtype)
    const norm = sqrt(reduceSum(mul(grads!, grads!), [0], true)) // [1]
    const maxNorm = at(adamWHyper.maxGradNorm)
    const clip = min(div(maxNorm, add(norm, scalar(graph, 1e-6, params!.dtype))), one)
    const factor = where(greater(maxNorm, scalar(graph, 0, params!.dtype)), clip, expandLike(one, clip))
    const g = mul(grads!, factor)
    const beta1 = at(adamWHyper.beta1)
    const beta2 = at(adamWHyper.beta2)
    const m1 = add(mul(beta1, m!), mul(sub(one, beta1), g))
    const v1 = add(mul(beta2, v!), mul(sub(one, beta2), mul(g, g)))
    const direction = div(
      div(m1, at(adamWHyper.biasCorrection1)),
      add(sqrt(div(v1, at(adamWHyper.biasCorrection2))), at(adamWHyper.epsilon)),
    )
    // Per group: lr·lrScale and decay.
    const parts: Value[] = []
    let end = 0
    for (let i = 0; i < groupList.length; i += 2) {
      const [offset, length] = [groupList[i]!, groupList[i + 1]!]
      if (offset > end) parts.push(slice(params!, 0, end, offset))
      end = offset + length
      const row = reshape(slice(groupHyper!, 0, i / 2, i / 2 + 1), [2])
      const rate = mul(at(adamWHyper.learningRate), slice(row, 0, 0, 1))
      const p = mul(slice(params!, 0, offset, end), sub(one, mul(rate, slice(row, 0, 1, 2))))
      parts.push(sub(p, mul(rate, slice(direction, 0, offset, end))))
    }
    const total = params!.shape[0] as number
    if (end < total) parts.push(slice(params!, 0, end, total))
    const isUsable = and(
      less(norm, scalar(graph, 3e38, params!.dtype)),
      greater(norm, scalar(graph, -1, params!.dtype)),
    )
    const keep = (updated: Value, old: Value) => where(isUsable, updated, old)
    return [keep(concat(parts, 0), params!), keep(m1, m!), keep(v1, v!), norm]
  },
})

/** Parameter group: a range of the flat buffer with its own rate factor and decay. */
export interface ParameterRange {
  readonly offset: number
  readonly length: number
}

/** All flat f32 [P]; hyper f32 [8]; groups i64 [G, 2]; groupHyper f32 [G, 2] {rate factor, decay} -> new p, m, v, norm [1]. */
export function adamW(
  state: { params: Value; grads: Value; m: Value; v: Value },
  hyper: Value,
  groups: Value,
  groupHyper: Value,
  ranges: readonly ParameterRange[],
) {
  const [params, m, v, gradNorm] = state.params.graph.apply(
    AdamW,
    [state.params, state.grads, state.m, state.v, hyper, groups, groupHyper],
    { groupList: ranges.flatMap((r) => [r.offset, r.length]) },
  )
  return { params: params!, m: m!, v: v!, gradNorm: gradNorm! }
}
