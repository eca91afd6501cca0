// How a frozen matrix is stored, and its meaning in standard ops. The same four inputs serve every format, so that one
// op record and one kernel cover all of them (design §4).
import type { DType, Graph, Shape, Value } from '../graph.js'
import { add, bitwiseAnd, cast, mul, shiftRight, sub } from './elementwise.js'
import { concat, gather, reshape, unsqueeze } from './shape.js'
import { constant, ints, scalar } from './tensor.js'

/** Codes of the attribute `format`. */
export const weightFormats = { f32: 0, bf16: 1, int4: 2, int8: 3, nf4: 4, int4sym: 5 } as const
export type WeightFormat = keyof typeof weightFormats

/** A frozen matrix [outFeatures, inFeatures]; `tensors` are the op inputs W0..W3. */
export interface Weight {
  readonly format: WeightFormat
  /** Elements that share a scale, along inFeatures. */
  readonly block: number
  readonly outFeatures: number
  readonly inFeatures: number
  readonly tensors: readonly [Value, Value | null, Value | null, Value | null]
}

/** What a weight looks like on disk: the suffix, type and shape of each of its tensors. */
export interface WeightTensor {
  readonly suffix: '' | '.codes' | '.scales' | '.offsets' | '.absmax' | '.nestedAbsmax' | '.nestedOffset'
  readonly dtype: DType
  readonly shape: readonly number[]
  /** Bytes that stay together where kernels lay rows in stripes; 0: the tensor stays as it is. */
  readonly stripeUnit: 0 | 2 | 4
}

/** Block of absmax values that share a nested scale (QLoRA, arXiv 2305.14314). */
const NESTED_BLOCK = 256

/** The tensors of a matrix in one format, in the order of the op inputs. */
export function weightTensors(
  format: WeightFormat,
  block: number,
  outFeatures: number,
  inFeatures: number,
): WeightTensor[] {
  const blocks = [outFeatures, inFeatures / block]
  const codes: WeightTensor = { suffix: '.codes', dtype: 'u8', shape: [outFeatures, inFeatures / 2], stripeUnit: 4 }
  const scales: WeightTensor = { suffix: '.scales', dtype: 'f16', shape: blocks, stripeUnit: 2 }
  switch (format) {
    case 'f32':
    case 'bf16':
      return [{ suffix: '', dtype: format, shape: [outFeatures, inFeatures], stripeUnit: 0 }]
    case 'int4':
      return [codes, scales, { ...scales, suffix: '.offsets' }]
    case 'int4sym':
      return [codes, scales]
    case 'int8':
      return [{ ...codes, dtype: 'i8', shape: [outFeatures, inFeatures] }, scales]
    case 'nf4': {
      const nested = Math.ceil((outFeatures * inFeatures) / block / NESTED_BLOCK)
      return [
        codes,
        { suffix: '.absmax', dtype: 'u8', shape: blocks, stripeUnit: 0 },
        { suffix: '.nestedAbsmax', dtype: 'f32', shape: [nested], stripeUnit: 0 },
        { suffix: '.nestedOffset', dtype: 'f32', shape: [1], stripeUnit: 0 },
      ]
    }
  }
}

/** 16-bit floats reach lowered graphs as f32: onnxruntime-node takes no bf16, and software devices no f16. */
export const loweredType = (dtype: DType): DType => (dtype === 'f16' || dtype === 'bf16' ? 'f32' : dtype)

/** Declares the leaves of a matrix. */
export function weightLeaf(
  graph: Graph,
  name: string,
  format: WeightFormat,
  block: number,
  outFeatures: number,
  inFeatures: number,
): Weight {
  const tensors = weightTensors(format, block, outFeatures, inFeatures).map((t) =>
    graph.leaf(name + t.suffix, 'weight', graph.kernels ? t.dtype : loweredType(t.dtype), t.shape),
  )
  const [w0 = null, w1 = null, w2 = null, w3 = null] = tensors
  return { format, block, outFeatures, inFeatures, tensors: [w0!, w1, w2, w3] }
}

/** NormalFloat 4 (bitsandbytes/functional.py). */
export const NF4_TABLE: readonly number[] = [
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
  -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]

/**
 * The signed 8-bit dynamic map of bitsandbytes (create_dynamic_map), ascending, 256 values: bit for bit, so rounded to
 * float32 wherever torch.linspace rounds, which counts from the nearer end.
 */
export const DYNAMIC_MAP: readonly number[] = (() => {
  const f = Math.fround
  const first = f(0.1)
  const values: number[] = []
  for (let i = 0; i < 7; i++) {
    const steps = 2 ** i
    const step = f(f(1 - first) / steps)
    const boundary = (j: number) => (2 * j < steps + 1 ? f(first + step * j) : f(1 - step * (steps - j)))
    for (let j = 0; j < steps; j++) {
      const mean = f(f(boundary(j) + boundary(j + 1)) / 2)
      const value = f(f(10 ** (i - 6)) * mean)
      values.push(value, -value)
    }
  }
  values.push(0, 1)
  return values.sort((a, b) => a - b)
})()

/** The low and high nibbles of [rows, K/2] codes as [rows, K]. */
function nibbles(codes: Value, rows: Shape[number], k: number): Value {
  const g = codes.graph
  const low = bitwiseAnd(codes, scalar(g, 15, 'u8'))
  const high = shiftRight(codes, scalar(g, 4, 'u8'))
  return reshape(concat([unsqueeze(low, [2]), unsqueeze(high, [2])], 2), [rows, k])
}

/** Rows of a matrix as real numbers [rows, K] in the graph's float type; `tensors` may be gathered rows of `weight`. */
function decode(weight: Weight, tensors: Weight['tensors'], rows: Shape[number]): Value {
  const [w0, w1, w2, w3] = tensors
  const g = w0.graph
  const float = g.floatType
  const k = weight.inFeatures
  const { block } = weight
  if (weight.format === 'f32' || weight.format === 'bf16') return cast(w0, float)
  const perBlock = (codes: Value, scales: Value) => {
    const grouped = reshape(cast(codes, float), [rows, k / block, block])
    return { grouped, scale: reshape(scales, [rows, k / block, 1]) }
  }
  const flat = (x: Value) => reshape(x, [rows, k])
  if (weight.format === 'int8') {
    const { grouped, scale } = perBlock(w0, cast(w1!, float))
    return flat(mul(grouped, scale))
  }
  if (weight.format === 'nf4') {
    const values = gather(constant(g, NF4_TABLE, [16], float), cast(nibbles(w0, rows, k), 'i64'))
    const blocks = weight.outFeatures * (k / block)
    const map = gather(constant(g, DYNAMIC_MAP, [256], float), cast(w1!, 'i64'))
    const nestedIndex = ints(
      g,
      Array.from({ length: blocks }, (_, i) => Math.floor(i / NESTED_BLOCK)),
    )
    const nested = reshape(gather(cast(w2!, float), nestedIndex), [weight.outFeatures, k / block])
    const absmax = add(mul(map, nested), cast(w3!, float))
    const { grouped, scale } = perBlock(values, absmax)
    return flat(mul(grouped, scale))
  }
  const { grouped, scale } = perBlock(nibbles(w0, rows, k), cast(w1!, float))
  if (weight.format === 'int4sym') return flat(mul(sub(grouped, scalar(g, 8, float)), scale))
  return flat(add(mul(grouped, scale), reshape(cast(w2!, float), [rows, k / block, 1])))
}

/** The whole matrix as real numbers [outFeatures, inFeatures]. */
export function dequantize(weight: Weight): Value {
  return decode(weight, weight.tensors, weight.outFeatures)
}

/** The rows `ids` (i64 [N]) as real numbers [N, inFeatures]. */
export function dequantizeRows(weight: Weight, ids: Value): Value {
  if (weight.format === 'nf4') return gather(dequantize(weight), ids)
  const [w0, w1, w2] = weight.tensors
  const rows = (x: Value | null) => x && gather(x, ids)
  return decode(weight, [rows(w0)!, rows(w1), rows(w2), null], ids.shape[0]!)
}

export interface WeightAttributes extends Record<string, number> {
  format: number
  block: number
}
export const weightAttributes = (w: Weight): WeightAttributes => ({ format: weightFormats[w.format], block: w.block })

/** Rebuilds the description of a weight from an op's inputs and attributes (in its lowering). */
export function weightOf(inputs: readonly (Value | null)[], attributes: WeightAttributes, at: number): Weight {
  const format = (Object.keys(weightFormats) as WeightFormat[]).find((f) => weightFormats[f] === attributes.format)
  const w0 = inputs[at]
  if (!format || !w0) throw new Error(`unknown weight format ${attributes.format}`)
  const packed = format === 'int4' || format === 'int4sym' || format === 'nf4'
  const [outFeatures, columns] = w0.shape as [number, number]
  return {
    format,
    block: attributes.block,
    outFeatures,
    inFeatures: packed ? columns * 2 : columns,
    tensors: [w0, inputs[at + 1] ?? null, inputs[at + 2] ?? null, inputs[at + 3] ?? null],
  }
}
