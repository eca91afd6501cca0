// Reverse-mode differentiation: builds the gradient as more nodes of the same graph, and none for frozen leaves.
import { type Graph, type Node, sameShape, type Value } from './graph.js'
import type { GradientContext } from './op.js'
import { add, cast } from './ops/elementwise.js'

/** The memory that a parameter's gradient is added to: state leaf `grad.<name>`, shaped like the parameter. */
export function gradientLeafName(parameter: string): string {
  return `grad.${parameter}`
}

/** Nodes that a gradient can flow through on its way to `wanted`. */
function dependents(graph: Graph, wanted: ReadonlySet<Value>): Set<Value> {
  const reached = new Set(wanted)
  for (const node of graph.nodes) {
    if (node.op.gradient === 'stops') continue
    if (node.inputs.some((x) => x && reached.has(x))) for (const y of node.outputs) reached.add(y)
  }
  return reached
}

/**
 * Adds to the graph the gradient of the sum of `seeds` (value -> incoming gradient) with respect to `wanted`.
 * With `accumulate`, gradients of parameters are added to their accumulator leaves and registered as updates of them.
 * @returns the gradient of each wanted value that the seeds depend on
 */
export function backward(
  graph: Graph,
  seeds: ReadonlyMap<Value, Value>,
  wanted: readonly Value[],
  options: { accumulate?: boolean } = {},
): Map<Value, Value> {
  const nodes = [...graph.nodes]
  const reached = dependents(graph, new Set(wanted))
  const gradients = new Map<Value, Value>(seeds)
  const accumulators = new Map<Value, Value>()
  const uses = new Map<Value, number>()
  for (const node of nodes) for (const x of node.inputs) if (x) uses.set(x, (uses.get(x) ?? 0) + 1)
  if (options.accumulate)
    for (const leaf of wanted) {
      if (leaf.leaf?.role !== 'parameter') continue
      const name = gradientLeafName(leaf.leaf.name)
      accumulators.set(leaf, graph.leaf(name, 'state', leaf.dtype, leaf.shape))
    }

  for (const node of nodes.reverse()) {
    if (node.op.gradient === 'stops') continue
    const dOutputs = node.outputs.map((y) => gradients.get(y) ?? null)
    if (dOutputs.every((d) => !d)) continue
    if (!node.inputs.some((x) => x && reached.has(x))) continue
    if (node.op.gradient === 'unsupported')
      throw new Error(`${node.op.opType} has no gradient, and one was asked for (node ${node.id})`)
    graph.at({ block: node.place.block, phase: 'backward' }, () => differentiate(node, dOutputs))
  }
  for (const [leaf, total] of accumulators) if (!total.leaf) graph.updates.set(gradientLeafName(leaf.leaf!.name), total)
  return new Map(
    wanted.flatMap((value) => {
      const d = accumulators.get(value) ?? gradients.get(value)
      return d ? [[value, d] as const] : []
    }),
  )

  function differentiate(node: Node, dOutputs: (Value | null)[]): void {
    const rule = node.op.gradient
    if (typeof rule !== 'function') return
    const taken = new Set<number>()
    const context: GradientContext = {
      graph,
      node,
      dOutputs,
      needs: (i) => node.inputs[i] != null && reached.has(node.inputs[i]!),
      uses: (i) => uses.get(node.inputs[i]!) ?? 0,
      takePartial(i) {
        taken.add(i)
        return accumulators.get(node.inputs[i]!) ?? gradients.get(node.inputs[i]!) ?? null
      },
    }
    const dInputs = rule(context)
    node.inputs.forEach((x, i) => {
      const d = dInputs[i]
      if (!x || !d || !reached.has(x)) return
      if (!sameShape(d.shape, x.shape))
        throw new Error(`${node.op.opType}: gradient ${i} has shape [${d.shape}], its input [${x.shape}]`)
      const sums = accumulators.has(x) ? accumulators : gradients
      const before = taken.has(i) ? undefined : sums.get(x)
      sums.set(x, before ? total(before, d) : d)
    })
  }
}

/** Sums two gradients in the wider of their types. */
function total(a: Value, b: Value): Value {
  if (a.dtype === b.dtype && a.dtype !== 'bf16') return add(a, b)
  const wide = a.dtype === 'f64' || b.dtype === 'f64' ? 'f64' : 'f32'
  return add(cast(a, wide), cast(b, wide))
}
