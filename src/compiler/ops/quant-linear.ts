// QuantLinear: y = x Wᵀ + bias + scaling·B(A x) + residual over a packed frozen W, with adapters as slots of one arena
// (design §3). LoRA: arXiv 2106.09685; QLoRA: arXiv 2305.14314.
import { type DType, formatType, type Node, sizeWith, type TensorType, type Value } from '../graph.js'
import { defineOp, type OpDefinition, type RealNumber, real } from '../op.js'
import {
  add,
  and,
  bitwiseAnd,
  cast,
  div,
  equal,
  greater,
  greaterOrEqual,
  less,
  mul,
  pow,
  scale,
  sqrt,
  sub,
  where,
} from './elementwise.js'
import { matMul, transposeLast } from './linear-algebra.js'
import { defineLinearGroup } from './linear-group.js'
import { absorbPrologue, applyPrologue, linearRoles } from './linear-prologue.js'
import { reduceSum } from './reduce.js'
import { gather, reshape, slice, unsqueeze } from './shape.js'
import { lastDim, need } from './shape-rules.js'
import { constant, scalar } from './tensor.js'
import { dequantize, type Weight, type WeightAttributes, weightAttributes, weightOf } from './weight.js'

/** Where one linear's adapter lies in a trained slice: A [rank, K] at 0, B [Nout, rank] at `bOffset` (floats). */
export interface AdapterSlot {
  /** The slice: one parameter leaf. */
  readonly slice: Value
  readonly rank: number
  readonly scaling: number
  readonly bOffset: number
}

/** Adapters of a graph that serves several: each row names its own (design §3). */
export interface AdapterSlots {
  /** f32, all adapters one after another. */
  readonly arena: Value
  /** i64 [slots, 8]: offsets of A and B, rank, scaling as float bits, offset of DoRA's factor (0: none). */
  readonly table: Value
  /** i32 [N]; −1: the base. */
  readonly rowSlot: Value
  readonly maxRank: number
}

export type LinearRole = keyof typeof linearRoles

export type LinearAttributes = WeightAttributes & {
  role?: number
  strict: number
  rank: number
  bOffset: number
  scaling: RealNumber
  out: DType
  /** What is done to x first (linearPrologues), with `eps` of its norm. */
  prologue?: number
  eps?: RealNumber
}

const INPUT = {
  x: 0,
  weight: 1,
  bias: 5,
  arena: 6,
  slotTable: 7,
  rowSlot: 8,
  rowWeight: 9,
  adapterX: 10,
  residual: 11,
  beside: 12,
} as const

/** A and B of the slot that the attributes describe, from its slice. */
function factors(slice_: Value, a: LinearAttributes, k: number, n: number): { A: Value; B: Value } {
  const A = reshape(slice(slice_, 0, 0, a.rank * k), [a.rank, k])
  const B = reshape(slice(slice_, 0, a.bOffset, a.bOffset + n * a.rank), [n, a.rank])
  return { A, B }
}

/** y of the base [N, Nout] with the adapter of every row's slot: c ∘ (y + scaling·B(A x)), c DoRA's factor or 1. */
function addSlots(y: Value, x: Value, arena: Value, table: Value, rowSlot: Value, maxRank: number): Value {
  const g = y.graph
  const k = lastDim(x) as number
  const n = lastDim(y) as number
  const int = (value: number) => scalar(g, value, 'i64')
  const real = (value: number) => scalar(g, value, g.floatType)
  const counted = (rows: number, columns: number, of: (row: number, column: number) => number) =>
    constant(
      g,
      Array.from({ length: rows * columns }, (_, i) => of(Math.floor(i / columns), i % columns)),
      [rows, columns],
      'i64',
    )
  let result = y
  for (let s = 0; s < (table.shape[0] as number); s++) {
    const entry = (column: number) => reshape(slice(slice(table, 0, s, s + 1), 1, column, column + 1), [1, 1])
    const rank = entry(2)
    const read = (index: Value, isThere: Value) =>
      mul(cast(gather(arena, where(isThere, index, int(0))), g.floatType), cast(isThere, g.floatType))
    const rankOfA = counted(maxRank, k, (r) => r)
    const a = read(
      add(
        counted(maxRank, k, (r, c) => r * k + c),
        entry(0),
      ),
      less(rankOfA, rank),
    ) // [R, K]
    const rankOfB = counted(n, maxRank, (_, r) => r)
    const b = read(
      add(
        add(
          mul(
            counted(n, maxRank, (o) => o),
            rank,
          ),
          rankOfB,
        ),
        entry(1),
      ),
      less(rankOfB, rank),
    ) // [Nout, R]
    // scaling from its bits: (1 + fraction) · 2^(exponent − 127)
    const bits = entry(3)
    const exponent = cast(sub(div(bits, int(2 ** 23)), int(127)), g.floatType)
    const fraction = scale(cast(bitwiseAnd(bits, int(2 ** 23 - 1)), g.floatType), 2 ** -23)
    const scaling = mul(add(real(1), fraction), pow(real(2), exponent))
    const delta = mul(matMul(matMul(x, transposeLast(a)), transposeLast(b)), scaling)
    const factorAt = entry(4)
    const hasFactor = greater(factorAt, int(0))
    const factorIndex = add(
      counted(1, n, (_, c) => c),
      factorAt,
    )
    const stored = cast(gather(arena, where(hasFactor, factorIndex, int(0))), g.floatType) // [1, Nout]
    const factor = where(hasFactor, stored, real(1))
    const isOwn = and(equal(rowSlot, scalar(g, s, 'i32')), greater(reshape(rank, [1]), int(0)))
    result = where(unsqueeze(isOwn, [1]), mul(factor, add(y, delta)), result)
  }
  return result
}

/** flops of x Wᵀ and of the adapter beside it. */
function linearFlops(node: Node, rows: TensorType, weightAt: number, dims: Readonly<Record<string, number>>) {
  const a = node.attributes as LinearAttributes
  const w = weightOf(node.inputs, a, weightAt)
  const n = sizeWith([rows.shape[0]!], dims)
  return { product: 2 * n * w.outFeatures * w.inFeatures, adapter: 2 * n * a.rank * (w.outFeatures + w.inFeatures) }
}

export const { op: QuantLinearGroup, grouping } = defineLinearGroup(() => QuantLinear)

export const QuantLinear: OpDefinition<LinearAttributes> = defineOp<LinearAttributes>({
  grouping,
  opType: 'QuantLinear',
  domain: 'espalier',
  activationInputs: [0, 10],
  hidden: ['out'],
  activationOutputs: [0],
  absorb: (node, producer) => absorbPrologue(node, producer, INPUT.beside, INPUT.weight),
  infer(inputs, attributes) {
    const x = need(inputs[INPUT.x], 'QuantLinear x')
    const w = weightOf(inputs, attributes, INPUT.weight)
    if (x.shape.length !== 2 || lastDim(x) !== w.inFeatures)
      throw new Error(`QuantLinear: ${formatType(x)} by a matrix [${w.outFeatures}, ${w.inFeatures}]`)
    return [{ dtype: inputs[INPUT.residual] ? 'f32' : attributes.out, shape: [x.shape[0]!, w.outFeatures] }]
  },
  lower(g, inputs, attributes) {
    const x = applyPrologue(inputs[INPUT.x]!, inputs[INPUT.beside] ?? null, attributes)
    const w = weightOf(inputs, attributes, INPUT.weight)
    let y = matMul(x, transposeLast(dequantize(w)))
    const table = inputs[INPUT.slotTable]
    if (table) y = addSlots(y, x, inputs[INPUT.arena]!, table, inputs[INPUT.rowSlot]!, attributes.rank)
    const bias = inputs[INPUT.bias]
    if (bias) y = add(y, cast(bias, g.floatType))
    const arena = inputs[INPUT.arena]
    if (arena && !table && attributes.rank > 0) {
      const { A, B } = factors(cast(arena, g.floatType), attributes, w.inFeatures, w.outFeatures)
      const low = matMul(inputs[INPUT.adapterX] ?? x, transposeLast(A)) // [N, R]
      let delta = scale(matMul(low, transposeLast(B)), attributes.scaling.real)
      const rowSlot = inputs[INPUT.rowSlot]
      if (rowSlot) {
        const active = cast(greaterOrEqual(rowSlot, scalar(g, 0, 'i32')), g.floatType)
        const rowWeight = inputs[INPUT.rowWeight]
        delta = mul(delta, unsqueeze(rowWeight ? mul(active, cast(rowWeight, g.floatType)) : active, [1]))
      }
      y = add(y, delta)
    }
    const residual = inputs[INPUT.residual]
    return [residual ? add(residual, y) : y]
  },
  gradient(c) {
    const [dY] = c.dOutputs as [Value]
    const { inputs, attributes } = c.node
    const a = attributes as LinearAttributes
    const x = inputs[INPUT.x]!
    if (inputs[INPUT.rowSlot])
      throw new Error('QuantLinear: a gradient with rowSlot is not defined; train one slot at a time')
    const trained = c.needs(INPUT.arena)
    const dropped = inputs[INPUT.adapterX] ?? null
    const wantsX = c.needs(INPUT.x)
    // dX = dY W + scaling (dY B) A; several readers of x are summed by passing the partial sum through.
    const type: DType = c.uses(INPUT.x) > 1 || x.dtype === 'f32' ? 'f32' : x.dtype
    const partial = wantsX ? c.takePartial(INPUT.x) : null
    const gradIn = trained ? c.takePartial(INPUT.arena) : null
    const outputs = c.graph.apply(
      QuantLinearGrad,
      [
        x,
        dY,
        ...inputs.slice(INPUT.weight, INPUT.weight + 4),
        inputs[INPUT.arena] ?? null,
        inputs[INPUT.slotTable] ?? null,
        gradIn,
        dropped,
        partial,
      ],
      { ...a, out: type, wantsX: wantsX ? 1 : 0 },
    )
    const result: (Value | null)[] = inputs.map(() => null)
    if (wantsX) result[INPUT.x] = outputs[0]!
    if (trained) result[INPUT.arena] = outputs[1]!
    if (dropped && c.needs(INPUT.adapterX)) result[INPUT.adapterX] = outputs[2]!
    if (c.needs(INPUT.residual)) result[INPUT.residual] = cast(dY, 'f32')
    return result
  },
  flops(node, dims) {
    const { product, adapter } = linearFlops(node, node.inputs[0]!, INPUT.weight, dims)
    return product + adapter
  },
})

export const QuantLinearGrad = defineOp<LinearAttributes & { wantsX: number }>({
  opType: 'QuantLinearGrad',
  domain: 'espalier',
  activationInputs: [0, 1],
  hidden: ['out', 'wantsX'],
  activationOutputs: [0, 2],
  mutates: { 1: 8 },
  infer(inputs, attributes) {
    const x = need(inputs[0], 'QuantLinearGrad x')
    const outputs: TensorType[] = [{ dtype: attributes.out, shape: x.shape }]
    const gradIn = inputs[8]
    outputs.push(gradIn ? { dtype: gradIn.dtype, shape: gradIn.shape } : { dtype: 'f32', shape: [0] })
    if (inputs[9]) outputs.push({ dtype: attributes.out, shape: x.shape })
    return outputs
  },
  gradient: 'unsupported',
  flops(node, dims) {
    const { product, adapter } = linearFlops(node, node.inputs[0]!, 2, dims)
    const { wantsX } = node.attributes as { wantsX: number }
    return (wantsX ? product : 0) + (node.inputs[8] ? 2 * adapter : wantsX ? adapter : 0)
  },
})

export const QuantLinearRowNorms = defineOp<LinearAttributes>({
  opType: 'QuantLinearRowNorms',
  domain: 'espalier',
  hidden: ['out'],
  infer(inputs, attributes) {
    return [{ dtype: 'f32', shape: [weightOf(inputs, attributes, 0).outFeatures] }]
  },
  gradient: 'stops',
  // ‖W + scaling·BA‖ by rows
  lower(g, inputs, attributes) {
    const w = weightOf(inputs, attributes, 0)
    const { A, B } = factors(cast(inputs[4]!, g.floatType), attributes, w.inFeatures, w.outFeatures)
    const merged = add(dequantize(w), scale(matMul(B, A), attributes.scaling.real))
    return [sqrt(reduceSum(mul(merged, merged), [1]))]
  },
})

const float32 = new Float32Array(1)
const bits32 = new Uint32Array(float32.buffer)
/** A float as the low 32 bits of an integer: how a slot table holds its scaling. */
export function floatBits(value: number): number {
  float32[0] = value
  return bits32[0]!
}

/** One row of a slot table for an adapter that is bound as its own slice. */
function slotTable(slot: AdapterSlot): Value {
  const row = [0, slot.bOffset, slot.rank, floatBits(slot.scaling), 0, 0, 0, 0]
  return constant(slot.slice.graph, row, [1, 8], 'i64')
}

function linearAttributes(weight: Weight, slot: AdapterSlot | null, out: DType): LinearAttributes {
  return {
    ...weightAttributes(weight),
    strict: weight.tensors[0].graph.strict ? 1 : 0,
    rank: slot?.rank ?? 0,
    bOffset: slot?.bOffset ?? 0,
    scaling: real(slot?.scaling ?? 0),
    out,
  } as LinearAttributes
}

export interface LinearOptions {
  readonly bias?: Value | null
  readonly slot?: AdapterSlot | null
  /** Instead of `slot` and `rowSlot`, where a graph serves. */
  readonly slots?: AdapterSlots | null
  readonly role?: LinearRole
  /** i32 [N]: −1 leaves a row to the base. */
  readonly rowSlot?: Value | null
  /** What the adapter reads when it is not x (dropout). */
  readonly adapterX?: Value | null
  /** f32 [N, Nout], added to the result, which is then f32. */
  readonly residual?: Value | null
  /** f32 whatever the activation type. */
  readonly out?: 'f32'
}

/** x [N, K] by a frozen matrix [Nout, K] with its adapter -> [N, Nout]. */
export function quantLinear(x: Value, weight: Weight, options: LinearOptions = {}): Value {
  const g = x.graph
  const slot = options.slot ?? null
  const slots = options.slots ?? null
  const out: DType = options.out && g.kernels ? options.out : g.activationType
  return g.apply(
    QuantLinear,
    [
      x,
      ...weight.tensors,
      options.bias ?? null,
      slot?.slice ?? slots?.arena ?? null,
      slot && g.kernels ? slotTable(slot) : (slots?.table ?? null),
      options.rowSlot ?? slots?.rowSlot ?? null,
      null,
      options.adapterX ?? null,
      options.residual ?? null,
    ],
    {
      ...linearAttributes(weight, slot, out),
      ...(slots ? { rank: slots.maxRank } : {}),
      ...(options.role ? { role: linearRoles[options.role] } : {}),
    },
  )[0]!
}

/** L2 norms of the rows of W + scaling·BA -> f32 [Nout] (DoRA, arXiv 2402.09353). */
export function rowNorms(weight: Weight, slot: AdapterSlot): Value {
  const g = slot.slice.graph
  return g.apply(
    QuantLinearRowNorms,
    [...weight.tensors, slot.slice, g.kernels ? slotTable(slot) : null],
    linearAttributes(weight, slot, 'f32'),
  )[0]!
}
