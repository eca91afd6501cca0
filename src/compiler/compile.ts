// From a graph to what the runtime runs: distinct ONNX models, steps bound to leaves, outputs and one workspace.

import { type EmittedModel, emitSegment } from './emit.js'
import { bytesOf, type DType, type Graph, type LeafRole, type Shape, sizeWith, type Value } from './graph.js'
import { type Cut, cutGraph } from './passes/cut.js'
import { intermediateBytes, placeBuffers } from './passes/place-buffers.js'
import { planRecomputation, type RecomputePolicy } from './passes/recompute.js'
import { simplify } from './passes/simplify.js'
import { canonicalNames, printSegment, type Segment } from './segment.js'
import { verify } from './verify.js'

export interface CompileOptions {
  readonly cut?: Cut
  /** Largest size of every symbolic dimension: buffers are made for it. */
  readonly dims: Readonly<Record<string, number>>
  readonly recompute?: RecomputePolicy
  /** Bytes for values kept between forward and backward. Default: unlimited. */
  readonly memoryBudgetBytes?: number
}

/** Where an input or output of a step lies. */
export type Place =
  | { readonly kind: 'leaf'; readonly name: string }
  | { readonly kind: 'output'; readonly name: string }
  | { readonly kind: 'workspace'; readonly byteOffset: number }

export interface StepValue {
  readonly place: Place
  readonly dtype: DType
  readonly shape: Shape
}

export interface CompiledStep {
  readonly name: string
  /** Index into `models`. */
  readonly model: number
  readonly inputs: Readonly<Record<string, StepValue>>
  readonly outputs: Readonly<Record<string, StepValue>>
}

export interface Compiled {
  readonly models: readonly (EmittedModel & { readonly text: string })[]
  readonly steps: readonly CompiledStep[]
  readonly leaves: readonly {
    readonly name: string
    readonly role: LeafRole
    readonly dtype: DType
    readonly shape: Shape
  }[]
  readonly outputs: readonly { readonly name: string; readonly dtype: DType; readonly shape: Shape }[]
  readonly dims: Readonly<Record<string, number>>
  readonly workspaceBytes: number
  /** The most that the values inside one segment take, beside the workspace. */
  readonly intermediateBytes: number
  /** Multiply-adds counted twice, recomputation included, for the largest sizes. */
  readonly flops: number
}

/** Simplifies, plans, cuts, verifies and emits. The graph is used up. */
export function compile(graph: Graph, options: CompileOptions): Compiled {
  simplify(graph)
  const { dims } = options
  planRecomputation(graph, {
    policy: options.recompute ?? 'auto',
    budgetBytes: options.memoryBudgetBytes ?? Number.POSITIVE_INFINITY,
    dims,
    narrow: graph.activationType === 'bf16',
  })
  const segments = cutGraph(graph, options.cut ?? 'blocks')
  verify(graph, segments)
  const bound = new Map<Value, Place>()
  for (const leaf of graph.leaves) bound.set(leaf, { kind: 'leaf', name: leaf.leaf!.name })
  for (const [name, value] of graph.updates) bound.set(value, { kind: 'leaf', name })
  for (const [name, value] of graph.outputs) {
    if (bound.has(value)) throw new Error(`output ${name} is a leaf, an update or a second name for another output`)
    bound.set(value, { kind: 'output', name })
  }
  const workspace = placeBuffers(segments, dims, new Set(bound.keys()))
  const place = (value: Value): Place =>
    bound.get(value) ?? { kind: 'workspace', byteOffset: workspace.values.get(value)!.byteOffset }

  const models = new Map<string, EmittedModel & { index: number }>()
  const steps = segments.map((segment): CompiledStep => {
    const text = printSegment(segment)
    let model = models.get(text)
    if (!model) {
      model = { index: models.size, ...emitSegment(segment) }
      models.set(text, model)
    }
    return { name: segment.name, model: model.index, ...bindings(segment, place) }
  })
  const used = new Set(segments.flatMap((s) => [...s.inputs, ...s.outputs]))
  const updated = new Set(graph.updates.keys())
  return {
    models: [...models].map(([text, { bytes, nodes }]) => ({ text, bytes, nodes })),
    steps,
    leaves: graph.leaves
      .filter((v) => used.has(v) || updated.has(v.leaf!.name))
      .map((v) => ({ name: v.leaf!.name, role: v.leaf!.role, dtype: v.dtype, shape: v.shape })),
    outputs: [...graph.outputs].map(([name, v]) => ({ name, dtype: v.dtype, shape: v.shape })),
    dims,
    workspaceBytes: workspace.byteLength,
    intermediateBytes: Math.max(0, ...segments.map((s) => intermediateBytes(s, dims))),
    flops: segments.flatMap((s) => s.nodes).reduce((n, node) => n + (node.op.flops?.(node, dims) ?? 0), 0),
  }
}

function bindings(segment: Segment, place: (value: Value) => Place) {
  const names = canonicalNames(segment)
  const describe = (values: readonly Value[]) =>
    Object.fromEntries(values.map((v) => [names.get(v)!, { place: place(v), dtype: v.dtype, shape: v.shape }]))
  return { inputs: describe(segment.inputs), outputs: describe(segment.outputs) }
}

/** Bytes of a value at the largest sizes. */
export function byteLengthOf(value: { dtype: DType; shape: Shape }, dims: Readonly<Record<string, number>>): number {
  return sizeWith(value.shape, dims) * bytesOf[value.dtype]
}
