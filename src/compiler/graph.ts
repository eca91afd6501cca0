// Symbolic tensors and the graph they form. Values are immutable; nodes are kept in an order in which they can run.
// Building for a target without kernels applies each fused op's standard lowering on the spot (design §3).
import type { AnyOp, Attributes, OpDefinition } from './op.js'

export type DType = 'f32' | 'f64' | 'bf16' | 'f16' | 'i64' | 'i32' | 'u8' | 'i8' | 'bool'
/** A size, or the name of a symbolic dimension that each run fixes (N tokens, M loss rows, S documents + 1). */
export type Dim = number | string
export type Shape = readonly Dim[]

export interface TensorType {
  readonly dtype: DType
  readonly shape: Shape
}

/** `input` varies by run, `weight` is frozen, `parameter` is trained, `state` is memory that the graph updates. */
export type LeafRole = 'input' | 'weight' | 'parameter' | 'state'

export interface Value extends TensorType {
  readonly graph: Graph
  readonly id: number
  /** Null for leaves. */
  readonly producer: Node | null
  readonly index: number
  readonly leaf: { readonly name: string; readonly role: LeafRole } | null
}

/** Where a node belongs when the graph is cut: `embed`, `block.3`, `head`, and forward or backward. */
export interface Place {
  readonly block: string
  readonly phase: 'forward' | 'backward'
}

export interface Node {
  readonly id: number
  readonly op: AnyOp
  readonly inputs: readonly (Value | null)[]
  readonly attributes: Attributes
  readonly outputs: readonly Value[]
  readonly place: Place
}

export interface GraphOptions {
  /** False: fused ops are replaced by their standard lowering. */
  kernels: boolean
  /** The type of real numbers: f64 makes the lowering an oracle. */
  floatType?: 'f32' | 'f64'
  /** The type of activations inside blocks; bf16 needs kernels. */
  activationType?: 'f32' | 'bf16'
  /** fp32 arithmetic in every kernel. */
  strict?: boolean
}

/** A graph under construction. */
export class Graph {
  readonly kernels: boolean
  readonly floatType: 'f32' | 'f64'
  readonly activationType: 'f32' | 'f64' | 'bf16'
  readonly strict: boolean
  readonly leaves: Value[] = []
  nodes: Node[] = []
  readonly outputs = new Map<string, Value>()
  /** state or parameter-gradient leaf name -> the value that holds its contents after the run. */
  readonly updates = new Map<string, Value>()
  place: Place = { block: 'embed', phase: 'forward' }
  private nextId = 0
  private readonly byName = new Map<string, Value>()

  constructor(options: GraphOptions) {
    this.kernels = options.kernels
    this.floatType = options.floatType ?? 'f32'
    this.activationType = options.kernels ? (options.activationType ?? 'f32') : this.floatType
    this.strict = options.strict ?? this.activationType !== 'bf16'
  }

  /** A named leaf; asking again for a name gives the same value, and must agree on its type. */
  leaf(name: string, role: LeafRole, dtype: DType, shape: Shape): Value {
    const known = this.byName.get(name)
    if (known) {
      if (known.dtype !== dtype || known.shape.join() !== shape.join())
        throw new Error(
          `graph: ${name} was declared as ${formatType(known)} and is now asked for as ${formatType({ dtype, shape })}`,
        )
      return known
    }
    const value: Value = {
      graph: this,
      id: this.nextId++,
      dtype,
      shape,
      producer: null,
      index: 0,
      leaf: { name, role },
    }
    this.leaves.push(value)
    this.byName.set(name, value)
    return value
  }

  /** Adds one node (or, without kernels, the op's lowering) and returns its outputs. */
  apply<A extends Attributes>(op: OpDefinition<A>, inputs: readonly (Value | null)[], attributes: A): Value[] {
    if (!this.kernels && op.lower) return op.lower(this, inputs, attributes)
    if (!this.kernels && op.domain === 'espalier')
      throw new Error(`${op.opType} has no standard lowering; it can only run with our kernels`)
    const types = op.infer(inputs, attributes)
    const node = { id: this.nextId++, op, inputs, attributes, outputs: [] as Value[], place: this.place }
    // A shape rule may return one of its inputs: only its type counts.
    types.forEach(({ dtype, shape }, index) => {
      node.outputs.push({ graph: this, id: this.nextId++, dtype, shape, producer: node, index, leaf: null })
    })
    this.nodes.push(node)
    return node.outputs
  }

  /** Runs `build` with its nodes placed in `block`. */
  in<T>(block: string, build: () => T): T {
    const before = this.place
    this.place = { ...before, block }
    try {
      return build()
    } finally {
      this.place = before
    }
  }

  /** Runs `build` with its nodes placed at `place`. */
  at<T>(place: Place, build: () => T): T {
    const before = this.place
    this.place = place
    try {
      return build()
    } finally {
      this.place = before
    }
  }

  output(name: string, value: Value): void {
    if (this.outputs.has(name)) throw new Error(`graph: output ${name} is named twice`)
    this.outputs.set(name, value)
  }
}

export function formatType(type: TensorType): string {
  return `${type.dtype}[${type.shape.join(', ')}]`
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((d, i) => d === b[i])
}

/** Elements of a shape whose dimensions are all known. @throws where one is symbolic */
export function staticSize(shape: Shape): number {
  return shape.reduce<number>((n, d) => {
    if (typeof d === 'string') throw new Error(`dimension ${d} is not known while compiling`)
    return n * d
  }, 1)
}

/** Elements of a shape with symbolic dimensions given. */
export function sizeWith(shape: Shape, dims: Readonly<Record<string, number>>): number {
  return shape.reduce<number>((n, d) => {
    const size = typeof d === 'string' ? dims[d] : d
    if (size === undefined) throw new Error(`no size is given for dimension ${d}`)
    return n * size
  }, 1)
}

export const bytesOf: Record<DType, number> = {
  f32: 4,
  f64: 8,
  bf16: 2,
  f16: 2,
  i64: 8,
  i32: 4,
  u8: 1,
  i8: 1,
  bool: 1,
}

export function isFloat(dtype: DType): boolean {
  return dtype === 'f32' || dtype === 'f64' || dtype === 'bf16' || dtype === 'f16'
}

/** TensorProto.DataType (onnx.proto3). */
export const onnxElementType: Readonly<Record<DType, number>> = {
  f32: 1,
  u8: 2,
  i8: 3,
  i32: 6,
  i64: 7,
  bool: 9,
  f16: 10,
  f64: 11,
  bf16: 16,
}
