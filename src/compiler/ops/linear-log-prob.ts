// LinearLogProb: log-probabilities of labels under the output head, without holding the logits (design §3); Embedding.
import { type DType, type Node, sizeWith, type TensorType, type Value } from '../graph.js'
import { defineOp, type FusedPair, type RealNumber, real } from '../op.js'
import { add, cast, div, exp, greaterOrEqual, log, max, mul, scale, sub, tanh, where } from './elementwise.js'
import { matMul, transposeLast } from './linear-algebra.js'
import { reduceMax, reduceSum } from './reduce.js'
import { convert } from './rotary.js'
import { expandLike, expandRows, gather, gatherElements, reshape, ScatterND, unsqueeze } from './shape.js'
import { need } from './shape-rules.js'
import { scalar } from './tensor.js'
import { dequantize, dequantizeRows, type Weight, type WeightAttributes, weightAttributes, weightOf } from './weight.js'

type HeadAttributes = WeightAttributes & {
  strict: number
  scale: RealNumber
  softcap: RealNumber
  /** 1: no row has two labels. */
  distinctRows: number
}
const IN = { h: 0, weight: 1, labels: 5, lossRows: 6, temperature: 7 } as const

/** Multiply-adds of `products` passes over the head. */
function headFlops(
  inputs: readonly (Value | null)[],
  dims: Readonly<Record<string, number>>,
  attributes: WeightAttributes,
  products: number,
) {
  const w = weightOf(inputs, attributes, IN.weight)
  return products * 2 * sizeWith(inputs[IN.labels]!.shape, dims) * w.outFeatures * w.inFeatures
}

/** Both directions in one node; null where another gradient comes in, or a softcap's slope needs the logits. */
function fused(forward: Node, backward: Node, dLogps: Value): FusedPair | null {
  if (backward.inputs[10] || backward.inputs[11]) return null
  if ((forward.attributes as HeadAttributes).softcap.real > 0) return null
  return {
    op: LinearLogProbFused,
    inputs: [...forward.inputs.slice(0, IN.temperature), dLogps, forward.inputs[IN.temperature] ?? null],
    attributes: forward.attributes,
    forwardOutputs: [0, 1, 2],
    backwardOutputs: [3],
  }
}

export const LinearLogProb = defineOp<HeadAttributes>({
  opType: 'LinearLogProb',
  domain: 'espalier',
  hidden: ['distinctRows'],
  activationInputs: [0],
  infer(inputs): TensorType[] {
    const labels = need(inputs[IN.labels], 'LinearLogProb labels')
    const row: TensorType = { dtype: labels.graph.floatType === 'f64' ? 'f64' : 'f32', shape: labels.shape }
    return [row, row, row]
  },
  lower(g, inputs, attributes) {
    const float = g.floatType
    const labels = inputs[IN.labels]!
    const w = weightOf(inputs, attributes, IN.weight)
    const rows = gather(inputs[IN.h]!, cast(inputs[IN.lossRows]!, 'i64')) // [M, D]
    let logits = scale(matMul(rows, transposeLast(dequantize(w))), attributes.scale.real) // [M, V]
    const cap = attributes.softcap.real
    if (cap > 0) logits = scale(tanh(scale(logits, 1 / cap)), cap)
    const temperature = inputs[IN.temperature]
    if (temperature) logits = div(logits, cast(temperature, float))
    const top = reduceMax(logits, [1], true)
    const exps = exp(sub(logits, top))
    const total = reduceSum(exps, [1], true)
    const lse = add(log(total), top) // [M, 1]
    const safe = unsqueeze(cast(max(labels, scalar(g, 0, 'i32')), 'i64'), [1])
    const picked = sub(gatherElements(logits, safe, 1), lse)
    const zero = scalar(g, 0, float)
    const logps = where(greaterOrEqual(labels, scalar(g, 0, 'i32')), reshape(picked, labels.shape), zero)
    const entropy = sub(lse, div(reduceSum(mul(exps, logits), [1], true), total))
    return [logps, reshape(entropy, labels.shape), reshape(lse, labels.shape)]
  },
  gradient(c) {
    const { inputs, outputs, attributes } = c.node
    const [dLogps, dEntropy, dLse] = c.dOutputs
    const [logps, entropy, lse] = outputs as [Value, Value, Value]
    const result: (Value | null)[] = inputs.map(() => null)
    if (!c.needs(IN.h)) return result
    const given = dLogps ?? expandLike(scalar(c.graph, 0, 'f32'), logps)
    result[IN.h] = c.graph.apply(
      LinearLogProbGrad,
      [
        ...inputs.slice(0, IN.temperature),
        lse,
        entropy,
        given,
        dEntropy ?? null,
        dLse ?? null,
        inputs[IN.temperature] ?? null,
      ],
      attributes as HeadAttributes,
    )[0]!
    return result
  },
  fusedWithGradient: {
    gradientOp: 'LinearLogProbGrad',
    // dLogps known beforehand and no other incoming gradient: logits are computed once for both directions.
    fuse: (forward, backward) => fused(forward, backward, backward.inputs[9]!),
    // dH of a row is linear in the row's dLogp: with ones for it the fused node gives the factor.
    fuseUnit(forward, backward) {
      if (!(forward.attributes as HeadAttributes).distinctRows) return null
      const h = forward.inputs[IN.h]!
      const dLogps = backward.inputs[9]!
      const { graph } = h
      const pair = fused(forward, backward, expandLike(scalar(graph, 1, dLogps.dtype), forward.inputs[IN.labels]!))
      if (!pair) return null
      return {
        ...pair,
        finish(unit) {
          const indices = unsqueeze(cast(forward.inputs[IN.lossRows]!, 'i64'), [1])
          const zeros = expandRows(scalar(graph, 0, dLogps.dtype), h)
          const byRow = graph.apply(ScatterND, [zeros, indices, dLogps], { reduction: 'none' })[0]! // [N]
          return convert(mul(convert(unit, dLogps.dtype), unsqueeze(byRow, [1])), unit.dtype) // [N, D]
        },
      }
    },
  },
  flops: (node, dims) => headFlops(node.inputs, dims, node.attributes as HeadAttributes, 1),
})

export const LinearLogProbGrad = defineOp<HeadAttributes>({
  opType: 'LinearLogProbGrad',
  domain: 'espalier',
  hidden: ['distinctRows'],
  activationInputs: [0],
  activationOutputs: [0],
  infer: ([h]) => [need(h, 'LinearLogProbGrad h')],
  gradient: 'unsupported',
  flops: (node, dims) => headFlops(node.inputs, dims, node.attributes as HeadAttributes, 2),
})

export const LinearLogProbFused = defineOp<HeadAttributes>({
  opType: 'LinearLogProbFused',
  domain: 'espalier',
  hidden: ['distinctRows'],
  activationInputs: [0],
  activationOutputs: [3],
  infer(inputs) {
    const row: TensorType = { dtype: 'f32', shape: need(inputs[IN.labels], 'labels').shape }
    return [row, row, row, need(inputs[IN.h], 'h')]
  },
  gradient: 'unsupported',
  flops: (node, dims) => headFlops(node.inputs, dims, node.attributes as HeadAttributes, 2),
})

export interface HeadOptions {
  /** f32 [1]; logits are divided by it. */
  readonly temperature?: Value
  readonly logitScale?: number
  readonly softcap?: number
  /** No row of h has two labels: a loss of the log-probabilities then computes the logits once. */
  readonly distinctRows?: boolean
}

/** h [N, D]; labels and lossRows i32 [M] (rows of h that have a label) -> logps, entropy (nats), lse, each [M]. */
export function linearLogProb(h: Value, weight: Weight, labels: Value, lossRows: Value, options: HeadOptions = {}) {
  const [logps, entropy, lse] = h.graph.apply(
    LinearLogProb,
    [h, ...weight.tensors, labels, lossRows, options.temperature ?? null],
    {
      ...weightAttributes(weight),
      strict: h.graph.strict ? 1 : 0,
      scale: real(options.logitScale ?? 1),
      softcap: real(options.softcap ?? 0),
      distinctRows: options.distinctRows ? 1 : 0,
    } as HeadAttributes,
  )
  return { logps: logps!, entropy: entropy!, lse: lse! }
}

export const Embedding = defineOp<WeightAttributes & { out: DType }>({
  opType: 'Embedding',
  domain: 'espalier',
  hidden: ['out'],
  activationOutputs: [0],
  infer([ids, ...weights], attributes) {
    const w = weightOf(weights, attributes, 0)
    return [{ dtype: attributes.out, shape: [need(ids, 'Embedding ids').shape[0]!, w.inFeatures] }]
  },
  gradient: 'stops',
  lower: (_, [ids, ...weights], attributes) => [dequantizeRows(weightOf(weights, attributes, 0), cast(ids!, 'i64'))],
})

/** ids i32 [N] -> rows of the table [N, D], f32. */
export function embedding(ids: Value, table: Weight): Value {
  return ids.graph.apply(Embedding, [ids, ...table.tensors], {
    ...weightAttributes(table),
    out: ids.graph.kernels ? 'f32' : ids.graph.floatType,
  } as WeightAttributes & { out: DType })[0]!
}
