// What an op is: one record with its shape rule, gradient, standard lowering and cost (design §3).
import type { Dim, Graph, Node, TensorType, Value } from './graph.js'

/** Attribute values; numbers are emitted as ints unless wrapped by `real`. Typed arrays are tensors (Constant only). */
export type AttributeValue = number | string | readonly Dim[] | RealNumber | ConstantTensor
export type Attributes = Readonly<Record<string, AttributeValue>>

export interface RealNumber {
  readonly real: number
}
export interface ConstantTensor {
  readonly type: TensorType
  readonly data: readonly number[]
}

/** Marks an attribute as a float. */
export function real(value: number): RealNumber {
  return { real: value }
}

/** What a gradient rule may look at and build with. */
export interface GradientContext {
  readonly graph: Graph
  readonly node: Node
  /** Incoming gradients, null where nothing depends on that output. */
  readonly dOutputs: readonly (Value | null)[]
  /** Whether a gradient of that input is wanted. */
  needs(input: number): boolean
  /** How many nodes of the forward graph read that input's value. */
  uses(input: number): number
  /**
   * Takes over what has been summed so far for that input: the rule must return the total. For a trained leaf this is
   * the accumulator in memory, so that a kernel can add in place. Null when there is nothing to add to.
   */
  takePartial(input: number): Value | null
}

/** Returns one gradient per input; null for inputs that need none. */
export type GradientRule = (context: GradientContext) => (Value | null)[]

export interface OpDefinition<A extends Attributes = Attributes> {
  readonly opType: string
  readonly domain: '' | 'com.microsoft' | 'espalier'
  infer(inputs: readonly (Value | null)[], attributes: A): TensorType[]
  /** `stops`: the derivative is zero or undefined by nature. `unsupported`: asking for it is a mistake. */
  readonly gradient: GradientRule | 'stops' | 'unsupported'
  /** The meaning in standard ONNX ops, for any float type. Fused ops only. */
  lower?(graph: Graph, inputs: readonly (Value | null)[], attributes: A): Value[]
  /** Attributes that only repeat a shape input so that types are known while compiling; they are not emitted. */
  readonly hidden?: readonly string[]
  /** The outputs whose type is the activation type; such an op is emitted as `Name_bf16` where they are bf16. */
  readonly activationOutputs?: readonly number[]
  /** The inputs that a kernel reads in f32 or bf16 alike. */
  readonly activationInputs?: readonly number[]
  /** Declared mutation: output index -> the input whose memory it becomes. */
  readonly mutates?: Readonly<Record<number, number>>
  /** Multiply-adds counted twice, per unit of the symbolic dimensions given. Elementwise ops need none. */
  flops?(node: Node, dims: Readonly<Record<string, number>>): number
  /** How nodes of this op that read one input are computed together. */
  readonly grouping?: GroupingRule
  /**
   * How this op takes over what makes its input 0, where nothing else reads that: the node that stands for both, or null.
   */
  readonly absorb?: (node: Node, producer: Node) => Replacement | null
  /** The op that computes this one and its gradient in one pass. */
  readonly fusedWithGradient?: GradientFusion
}

export interface GradientFusion {
  readonly gradientOp: string
  /** The one node, where the incoming gradient is known before the forward runs. Null: they stay two. */
  fuse(forward: Node, backward: Node): FusedPair | null
  /** The same where the incoming gradient depends on the forward's results, and the gradient is linear in it. */
  fuseUnit?(forward: Node, backward: Node): UnitPair | null
}

/** A fused node that computes the gradient for incoming ones; `finish` gives the backward's output from that. */
export interface UnitPair extends FusedPair {
  finish(unit: Value): Value
}

/** A node in the place of others. */
export interface Replacement {
  readonly op: AnyOp
  readonly inputs: readonly (Value | null)[]
  readonly attributes: Attributes
}

/** Nodes of equal key become one, at most `most` of them; its outputs are theirs in order. */
export interface GroupingRule {
  readonly most: number
  /** Null: this node stays alone. Equal keys read the same input 0 and agree on all that the group shares. */
  key(node: Node): string | null
  group(nodes: readonly Node[]): Replacement
}

/** Describes how a forward and a backward node become one. */
export interface FusedPair extends Replacement {
  /** Outputs of the fused node that replace the forward's outputs, then the backward's. */
  readonly forwardOutputs: readonly number[]
  readonly backwardOutputs: readonly number[]
}

// biome-ignore lint/suspicious/noExplicitAny: attributes are checked by each op's own typed functions
export type AnyOp = OpDefinition<any>

/** Checks a record and freezes it. */
export function defineOp<A extends Attributes>(definition: OpDefinition<A>): OpDefinition<A> {
  return Object.freeze(definition)
}
