// Reductions, and the sum that undoes a broadcast.
import { type Dim, type Shape, sameShape, type TensorType, type Value } from '../graph.js'
import { defineOp, type GradientRule, type OpDefinition } from '../op.js'
import { cast, div, equal, mul, neg } from './elementwise.js'
import { expandLike, gather, reshape, shapeOf, unsqueeze } from './shape.js'
import { need, normalizeAxis } from './shape-rules.js'
import { ints, scalar } from './tensor.js'

interface ReduceAttributes extends Record<string, number | readonly number[]> {
  keepdims: number
  /** Kept beside the axes input so that shapes are known while compiling. */
  axesList: readonly number[]
}

function reducedShape(x: TensorType, axes: readonly number[], keepdims: number): Shape {
  const reduced = new Set(axes.map((a) => normalizeAxis(a, x.shape.length)))
  return keepdims ? x.shape.map((d, i) => (reduced.has(i) ? 1 : d)) : x.shape.filter((_, i) => !reduced.has(i))
}

function reduction(opType: string, gradient: GradientRule): OpDefinition<ReduceAttributes> {
  return defineOp<ReduceAttributes>({
    opType,
    domain: '',
    hidden: ['axesList'],
    infer([x], { axesList, keepdims }) {
      const input = need(x, opType)
      return [{ dtype: input.dtype, shape: reducedShape(input, axesList, keepdims) }]
    },
    gradient,
  })
}

/** Gives a reduced tensor its reduced axes back, as ones. */
function withAxes(value: Value, axes: readonly number[], keepdims: number, rank: number): Value {
  return keepdims
    ? value
    : unsqueeze(
        value,
        axes.map((a) => normalizeAxis(a, rank)),
      )
}

export const ReduceSum = reduction('ReduceSum', (c) => {
  const x = c.node.inputs[0]!
  const { axesList, keepdims } = c.node.attributes as ReduceAttributes
  return [expandLike(withAxes(c.dOutputs[0]!, axesList, keepdims, x.shape.length), x), null]
})

// Where several entries reach the maximum, each gets the whole gradient; use it for stabilising only.
export const ReduceMax = reduction('ReduceMax', (c) => {
  const x = c.node.inputs[0]!
  const { axesList, keepdims } = c.node.attributes as ReduceAttributes
  const top = withAxes(c.node.outputs[0]!, axesList, keepdims, x.shape.length)
  const dTop = withAxes(c.dOutputs[0]!, axesList, keepdims, x.shape.length)
  return [mul(cast(equal(x, top), x.dtype), dTop), null]
})

function reduce(op: OpDefinition<ReduceAttributes>, x: Value, axes: readonly number[], keepdims: boolean): Value {
  return x.graph.apply(op, [x, ints(x.graph, axes)], { keepdims: keepdims ? 1 : 0, axesList: axes })[0]!
}

export const reduceSum = (x: Value, axes: readonly number[], keepdims = false): Value =>
  reduce(ReduceSum, x, axes, keepdims)
export const reduceMax = (x: Value, axes: readonly number[], keepdims = false): Value =>
  reduce(ReduceMax, x, axes, keepdims)

export const CumSum = defineOp<Record<string, never>>({
  opType: 'CumSum',
  domain: '',
  infer: ([x]) => [need(x, 'CumSum')],
  gradient: 'unsupported',
})
/** Running sums along one axis, each with its own entry. */
export const cumSum = (x: Value, axis: number): Value =>
  x.graph.apply(CumSum, [x, scalar(x.graph, axis, 'i64')], {})[0]!

export const TopK = defineOp<{ count: Dim }>({
  opType: 'TopK',
  domain: '',
  hidden: ['count'],
  infer([x], { count }) {
    const shape = [...need(x, 'TopK').shape.slice(0, -1), count]
    return [
      { dtype: x!.dtype, shape },
      { dtype: 'i64', shape },
    ]
  },
  gradient: 'unsupported',
})
/** The largest entries of the last axis, in descending order. */
export function topK(x: Value, count: number): { values: Value; indices: Value } {
  const [values, indices] = x.graph.apply(TopK, [x, ints(x.graph, [count])], { count })
  return { values: values!, indices: indices! }
}
/** A vector's entries [P] in ascending order; each one's gradient goes to where it came from. */
export function sort(x: Value): Value {
  const [, order] = x.graph.apply(TopK, [neg(x), shapeOf(x)], { count: x.shape[0]! })
  return gather(x, order!)
}

export const ArgMax = defineOp<{ axis: number }>({
  opType: 'ArgMax',
  domain: '',
  infer: ([x], { axis }) => [{ dtype: 'i64', shape: need(x, 'ArgMax').shape.map((d, i) => (i === axis ? 1 : d)) }],
  gradient: 'stops',
})
/** The first of the largest entries of one axis, which stays as 1. */
export const argMax = (x: Value, axis: number): Value => x.graph.apply(ArgMax, [x], { axis })[0]!

/** Sums over one axis of known size and divides. */
export function reduceMean(x: Value, axis: number, size: Value): Value {
  return div(reduceSum(x, [axis], true), size)
}

/** Sums a gradient over the axes along which its value was broadcast. */
export function reduceTo(gradient: Value, shape: Shape): Value {
  if (sameShape(gradient.shape, shape)) return gradient
  const extra = gradient.shape.length - shape.length
  const axes = gradient.shape.flatMap((d, i) => (i < extra || (shape[i - extra] === 1 && d !== 1) ? [i] : []))
  const summed = reduceSum(gradient, axes, true)
  return sameShape(summed.shape, shape) ? summed : reshape(summed, shape)
}
