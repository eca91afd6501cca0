// One row of the case tables: how an op is called, on which data, and what it is differentiated by.
import type { DType, Graph, Shape, Value } from '../../src/compiler/graph.js'
import {
  loweredType,
  type Weight,
  type WeightFormat,
  type WeightTensor,
  weightLeaf,
  weightTensors,
} from '../../src/compiler/ops/weight.js'
import { bfloat16ToFloat32, float32ToBfloat16, halfTable, toHalf } from '../../src/models/float16.js'
import { layInStripes } from '../../src/models/stripes.js'
import type { Tensor } from './oracle.js'

export interface OpCase {
  /** The op's type; every op with a kernel must have at least one case. */
  readonly op: string
  readonly name: string
  /** Sizes of symbolic dimensions. */
  readonly dims: Readonly<Record<string, number>>
  /** Calls the op through its typed function. */
  build(c: CaseBuilder): Record<string, Value>
  /** Leaves to differentiate by; gradients flow in through every output named here. */
  readonly wrt?: readonly string[]
  readonly through?: readonly string[]
  /** Allowed error in fp32, of the largest entry. Default 2e-6. */
  readonly tolerance?: number
  /** Allowed error with bf16 activations, of the largest entry. Default 2e-2. */
  readonly fastTolerance?: number
}

/** A small deterministic generator (mulberry32). */
export function randomSource(seed: number): () => number {
  let a = seed >>> 0
  return () => {
    a = (a + 0x6d2b79f5) >>> 0
    let t = Math.imul(a ^ (a >>> 15), 1 | a)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

/** Declares leaves for a graph and remembers the data that feeds them; the same seed gives the same data. */
export class CaseBuilder {
  readonly graph: Graph
  readonly feeds: Record<string, Tensor> = {}
  private readonly dims: Readonly<Record<string, number>>
  private readonly random: () => number
  /** Real inputs hold bf16 values, so that storing them narrow loses nothing. */
  private readonly isNarrow: boolean

  constructor(graph: Graph, dims: Readonly<Record<string, number>>, options: { seed: number; isNarrow: boolean }) {
    this.graph = graph
    this.dims = dims
    this.random = randomSource(options.seed)
    this.isNarrow = options.isNarrow
  }

  private size(shape: Shape): number[] {
    return shape.map((d) => (typeof d === 'string' ? this.dims[d]! : d))
  }

  private normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.random())) * Math.cos(2 * Math.PI * this.random())
  }

  private data(shape: Shape, make: () => number): { shape: number[]; data: number[] } {
    const sizes = this.size(shape)
    const n = sizes.reduce((a, b) => a * b, 1)
    return { shape: sizes, data: Array.from({ length: n }, make) }
  }

  /** An activation: bf16 in the fast mode, else f32; f64 for the oracle. */
  activation(name: string, shape: Shape, spread = 1): Value {
    const { data, shape: sizes } = this.data(shape, () => {
      const x = Math.fround(this.normal() * spread)
      return this.isNarrow ? narrowToBf16(x) : x
    })
    const dtype = this.graph.kernels ? this.graph.activationType : this.graph.floatType
    this.feeds[name] = { dtype, shape: sizes, data }
    return this.graph.leaf(name, 'input', dtype, shape)
  }

  /** A real input that is f32 in every mode. */
  real(name: string, shape: Shape, spread = 1, centre = 0, role: 'input' | 'parameter' | 'state' = 'input'): Value {
    const { data, shape: sizes } = this.data(shape, () => Math.fround(centre + this.normal() * spread))
    this.feeds[name] = { dtype: this.graph.floatType, shape: sizes, data }
    return this.graph.leaf(name, role, this.graph.floatType, shape)
  }

  given(
    name: string,
    dtype: DType,
    shape: Shape,
    data: readonly number[],
    role: 'input' | 'parameter' | 'state' = 'input',
  ): Value {
    const type = dtype === 'f32' ? this.graph.floatType : dtype
    this.feeds[name] = { dtype: type, shape: this.size(shape), data }
    return this.graph.leaf(name, role, type, shape)
  }

  /** Random codes with scales and offsets of a usual size. */
  weight(name: string, format: WeightFormat, block: number, outFeatures: number, inFeatures: number): Weight {
    for (const t of weightTensors(format, block, outFeatures, inFeatures)) {
      const make = (): number => {
        if (t.dtype === 'u8') return Math.floor(this.random() * 256)
        if (t.dtype === 'i8') return Math.floor(this.random() * 255) - 127
        if (t.suffix === '.scales') return toHalf(0.005 + 0.01 * this.random())
        if (t.suffix === '.offsets') return toHalf(-0.06 - 0.04 * this.random())
        if (t.suffix === '.nestedAbsmax') return Math.fround(0.02 + 0.02 * this.random())
        if (t.suffix === '.nestedOffset') return Math.fround(0.07)
        const x = Math.fround(this.normal() * 0.05)
        return t.dtype === 'bf16' ? bf16Bits(x) : x
      }
      const { data: rowMajor, shape } = this.data(t.shape, make)
      const data = this.graph.kernels ? striped(rowMajor, t, outFeatures) : rowMajor
      const wide = this.graph.kernels ? t.dtype : loweredType(t.dtype)
      const decode = t.dtype === 'f16' ? (bits: number) => halfTable()[bits]! : bf16Value
      this.feeds[name + t.suffix] = { dtype: wide, shape, data: wide === t.dtype ? data : data.map(decode) }
    }
    return weightLeaf(this.graph, name, format, block, outFeatures, inFeatures)
  }

  integer(below: number): number {
    return Math.floor(this.random() * below)
  }
}

/** Elements of a weight tensor as kernels want them. */
function striped(data: number[], { dtype, stripeUnit }: WeightTensor, rows: number): number[] {
  if (stripeUnit === 0) return data
  const bytes = dtype === 'f16' ? Uint16Array.from(data) : dtype === 'i8' ? Int8Array.from(data) : Uint8Array.from(data)
  const laid = layInStripes(new Uint8Array(bytes.buffer), { rows, unitBytes: stripeUnit }).buffer
  return [...(dtype === 'f16' ? new Uint16Array(laid) : dtype === 'i8' ? new Int8Array(laid) : new Uint8Array(laid))]
}

/** bf16 bits of a number, rounded to nearest even. */
export const bf16Bits = (x: number): number => float32ToBfloat16(Float32Array.of(x))[0]!
/** The number that bf16 bits stand for. */
export const bf16Value = (bits: number): number => bfloat16ToFloat32(Uint16Array.of(bits))[0]!
/** A number as bf16 holds it. */
export const narrowToBf16 = (x: number): number => bf16Value(bf16Bits(x))
