// Ops that move data: reshape, transpose, slice, pad, concat, gather, expand.
import { type Dim, type Shape, sameShape, type Value } from '../graph.js'
import { defineOp } from '../op.js'
import { reduceTo } from './reduce.js'
import { need, normalizeAxis, staticDim } from './shape-rules.js'
import { ints, scalar } from './tensor.js'

export const Reshape = defineOp<{ toShape: readonly Dim[] }>({
  opType: 'Reshape',
  domain: '',
  hidden: ['toShape'],
  infer: ([x], { toShape }) => [{ dtype: need(x, 'Reshape').dtype, shape: toShape }],
  gradient: (c) => [reshape(c.dOutputs[0]!, c.node.inputs[0]!.shape), null],
})

/** Gives `x` another shape. At most one symbolic dimension may move; it is inferred at run time. */
export function reshape(x: Value, shape: Shape): Value {
  if (sameShape(x.shape, shape)) return x
  const symbolic = shape.filter((d) => typeof d === 'string')
  let target: number[]
  if (symbolic.length <= 1) target = shape.map((d) => (typeof d === 'string' ? -1 : d))
  else if (shape.every((d, i) => typeof d !== 'string' || x.shape[i] === d))
    target = shape.map((d) => (typeof d === 'string' ? 0 : d))
  else throw new Error(`Reshape: [${x.shape.join(', ')}] to [${shape.join(', ')}] moves two symbolic dimensions`)
  return x.graph.apply(Reshape, [x, ints(x.graph, target)], { toShape: shape })[0]!
}

export const Transpose = defineOp<{ perm: readonly number[] }>({
  opType: 'Transpose',
  domain: '',
  infer: ([x], { perm }) => [{ dtype: need(x, 'Transpose').dtype, shape: perm.map((p) => x!.shape[p]!) }],
  gradient(c) {
    const { perm } = c.node.attributes as { perm: readonly number[] }
    return [
      transpose(
        c.dOutputs[0]!,
        perm.map((_, i) => perm.indexOf(i)),
      ),
    ]
  },
})
export function transpose(x: Value, perm?: readonly number[]): Value {
  const order = perm ?? x.shape.map((_, i) => x.shape.length - 1 - i)
  return x.graph.apply(Transpose, [x], { perm: order })[0]!
}

export const Unsqueeze = defineOp<{ axesList: readonly number[] }>({
  opType: 'Unsqueeze',
  domain: '',
  hidden: ['axesList'],
  infer([x], { axesList }) {
    const shape: Dim[] = [...need(x, 'Unsqueeze').shape]
    for (const axis of [...axesList].sort((a, b) => a - b)) shape.splice(axis, 0, 1)
    return [{ dtype: x!.dtype, shape }]
  },
  gradient: (c) => [reshape(c.dOutputs[0]!, c.node.inputs[0]!.shape), null],
})
export function unsqueeze(x: Value, axes: readonly number[]): Value {
  return x.graph.apply(Unsqueeze, [x, ints(x.graph, axes)], { axesList: axes })[0]!
}

export const Shape_ = defineOp<Record<string, never>>({
  opType: 'Shape',
  domain: '',
  infer: ([x]) => [{ dtype: 'i64', shape: [need(x, 'Shape').shape.length] }],
  gradient: 'stops',
})
export const shapeOf = (x: Value): Value => x.graph.apply(Shape_, [x], {})[0]!

export const Expand = defineOp<{ toShape: readonly Dim[] }>({
  opType: 'Expand',
  domain: '',
  hidden: ['toShape'],
  infer: ([x], { toShape }) => [{ dtype: need(x, 'Expand').dtype, shape: toShape }],
  gradient: (c) => [reduceTo(c.dOutputs[0]!, c.node.inputs[0]!.shape), null],
})
/** Broadcasts `x` to the shape of `like`. */
export function expandLike(x: Value, like: Value): Value {
  if (sameShape(x.shape, like.shape)) return x
  // The shape of a leaf where one has it: then the result does not wait for `like` to be computed.
  const source = x.graph.leaves.find((leaf) => sameShape(leaf.shape, like.shape)) ?? like
  return x.graph.apply(Expand, [x, shapeOf(source)], { toShape: like.shape })[0]!
}
/** A scalar repeated for each row of `like`: [N]. */
export function expandRows(x: Value, like: Value): Value {
  return x.graph.apply(Expand, [x, slice(shapeOf(like), 0, 0, 1)], { toShape: [like.shape[0]!] })[0]!
}

export const Slice = defineOp<{ axis: number; start: number; end: number }>({
  opType: 'Slice',
  domain: '',
  hidden: ['axis', 'start', 'end'],
  infer([x], { axis, start, end }) {
    const input = need(x, 'Slice')
    const size = input.shape[axis]
    if (typeof size === 'number' && (start < 0 || end > size || end < start))
      throw new Error(`Slice: ${start}..${end} of axis ${axis} with ${size}`)
    return [{ dtype: input.dtype, shape: input.shape.map((d, i) => (i === axis ? end - start : d)) }]
  },
  // The gradient of a slice is zero outside it.
  gradient(c) {
    const x = c.node.inputs[0]!
    const { axis, start, end } = c.node.attributes as { axis: number; start: number; end: number }
    const size = staticDim(x.shape[axis], 'Slice gradient')
    return [padAxis(c.dOutputs[0]!, axis, start, size - end)]
  },
})
/** Elements [start, end) of one axis. */
export function slice(x: Value, axis: number, start: number, end: number): Value {
  const g = x.graph
  const at = normalizeAxis(axis, x.shape.length)
  if (start === 0 && end === x.shape[at]) return x
  return g.apply(Slice, [x, ints(g, [start]), ints(g, [end]), ints(g, [at])], { axis: at, start, end })[0]!
}

export const Pad = defineOp<{ axis: number; before: number; after: number }>({
  opType: 'Pad',
  domain: '',
  hidden: ['axis', 'before', 'after'],
  infer([x], { axis, before, after }) {
    const input = need(x, 'Pad')
    return [
      {
        dtype: input.dtype,
        shape: input.shape.map((d, i) => (i === axis ? staticDim(d, 'Pad') + before + after : d)),
      },
    ]
  },
  gradient(c) {
    const { axis, before } = c.node.attributes as { axis: number; before: number }
    const size = staticDim(c.node.inputs[0]!.shape[axis], 'Pad gradient')
    return [slice(c.dOutputs[0]!, axis, before, before + size)]
  },
})
/** Zeros before and after along one axis. */
export function padAxis(x: Value, axis: number, before: number, after: number): Value {
  if (before === 0 && after === 0) return x
  const rank = x.shape.length
  const pads = Array<number>(2 * rank).fill(0)
  pads[axis] = before
  pads[axis + rank] = after
  return x.graph.apply(Pad, [x, ints(x.graph, pads)], { axis, before, after })[0]!
}

export const Concat = defineOp<{ axis: number }>({
  opType: 'Concat',
  domain: '',
  infer(inputs, { axis }) {
    const first = need(inputs[0], 'Concat')
    const total = inputs.reduce((n, x) => n + staticDim(need(x, 'Concat').shape[axis], 'Concat'), 0)
    return [{ dtype: first.dtype, shape: first.shape.map((d, i) => (i === axis ? total : d)) }]
  },
  gradient(c) {
    const { axis } = c.node.attributes as { axis: number }
    let at = 0
    return c.node.inputs.map((x, i) => {
      const start = at
      at += staticDim(x!.shape[axis], 'Concat')
      return c.needs(i) ? slice(c.dOutputs[0]!, axis, start, at) : null
    })
  },
})
export function concat(values: readonly Value[], axis: number): Value {
  const first = values[0]!
  if (values.length === 1) return first
  return first.graph.apply(Concat, values, { axis: normalizeAxis(axis, first.shape.length) })[0]!
}

export const Gather = defineOp<{ axis: number }>({
  opType: 'Gather',
  domain: '',
  infer([x, indices], { axis }) {
    const input = need(x, 'Gather')
    const shape = [...input.shape.slice(0, axis), ...need(indices, 'Gather').shape, ...input.shape.slice(axis + 1)]
    return [{ dtype: input.dtype, shape }]
  },
  // dX[indices[i]] += dY[i]; along axis 0 only.
  gradient(c) {
    const [x, indices] = c.node.inputs as [Value, Value]
    if ((c.node.attributes as { axis: number }).axis !== 0) throw new Error('Gather: gradient along axis 0 only')
    return [scatterAdd(x, indices, c.dOutputs[0]!), null]
  },
})
export const gather = (x: Value, indices: Value, axis = 0): Value => x.graph.apply(Gather, [x, indices], { axis })[0]!

export const ScatterND = defineOp<{ reduction: string }>({
  opType: 'ScatterND',
  domain: '',
  infer: ([x]) => [need(x, 'ScatterND')],
  gradient: 'unsupported',
})
/** Zeros shaped like `like`, with rows of `updates` added at `indices` (rank 1) along axis 0. */
export function scatterAdd(like: Value, indices: Value, updates: Value): Value {
  const g = like.graph
  const zero = expandLike(scalar(g, 0, updates.dtype), like)
  return g.apply(ScatterND, [zero, unsqueeze(indices, [indices.shape.length]), updates], { reduction: 'add' })[0]!
}

export const GatherND = defineOp<Record<string, never>>({
  opType: 'GatherND',
  domain: '',
  infer([x, indices]) {
    const depth = staticDim(need(indices, 'GatherND').shape.at(-1), 'GatherND indices')
    return [{ dtype: need(x, 'GatherND').dtype, shape: [...indices!.shape.slice(0, -1), ...x!.shape.slice(depth)] }]
  },
  gradient: 'unsupported',
})
/** The entries that rows of `indices` name by their leading coordinates. */
export const gatherND = (x: Value, indices: Value): Value => x.graph.apply(GatherND, [x, indices], {})[0]!

export const GatherElements = defineOp<{ axis: number }>({
  opType: 'GatherElements',
  domain: '',
  infer: ([x, indices]) => [{ dtype: need(x, 'GatherElements').dtype, shape: need(indices, 'GatherElements').shape }],
  gradient(c) {
    const [x, indices] = c.node.inputs as [Value, Value]
    const { axis } = c.node.attributes as { axis: number }
    const zero = expandLike(scalar(x.graph, 0, x.dtype), x)
    return [x.graph.apply(ScatterElements, [zero, indices, c.dOutputs[0]!], { axis, reduction: 'add' })[0]!, null]
  },
})
export const ScatterElements = defineOp<{ axis: number; reduction: string }>({
  opType: 'ScatterElements',
  domain: '',
  infer: ([x]) => [need(x, 'ScatterElements')],
  gradient: 'unsupported',
})
export const gatherElements = (x: Value, indices: Value, axis: number): Value =>
  x.graph.apply(GatherElements, [x, indices], { axis: normalizeAxis(axis, x.shape.length) })[0]!

export const Range = defineOp<{ toShape: readonly Dim[] }>({
  opType: 'Range',
  domain: '',
  hidden: ['toShape'],
  infer: ([start], { toShape }) => [{ dtype: need(start, 'Range').dtype, shape: toShape }],
  gradient: 'stops',
})
/** 0, 1, … n−1 as i64, n the first dimension of `like`. */
export function rowIndices(like: Value): Value {
  const g = like.graph
  const n = reshape(slice(shapeOf(like), 0, 0, 1), [])
  return g.apply(Range, [scalar(g, 0, 'i64'), n, scalar(g, 1, 'i64')], { toShape: [like.shape[0]!] })[0]!
}

/** Splits the last axis into parts of the given sizes. */
export function splitLast(x: Value, sizes: readonly number[]): Value[] {
  let at = 0
  return sizes.map((size) => {
    const part = slice(x, x.shape.length - 1, at, at + size)
    at += size
    return part
  })
}

/** Repeats whole heads: [N, K, Dh] to [N, K·times, Dh], each head `times` times in a row. */
export function repeatHeads(x: Value, times: number): Value {
  if (times === 1) return x
  const [n, k, d] = x.shape as [Dim, number, number]
  const g = x.graph
  const wide = g.apply(Expand, [unsqueeze(x, [2]), concat([slice(shapeOf(x), 0, 0, 1), ints(g, [k, times, d])], 0)], {
    toShape: [n, k, times, d],
  })[0]!
  return reshape(wide, [n, k * times, d])
}
