// Dead code, common subexpressions, the fusion of an op with its own gradient, and that of neighbours over one input.
import type { Graph, Node, Value } from '../graph.js'
import type { FusedPair } from '../op.js'

/** Everything the graph promises to compute. */
function roots(graph: Graph): Value[] {
  return [...graph.outputs.values(), ...graph.updates.values()]
}

/** Rewrites inputs by `replaced`; nodes are copied only where something changes. */
function substitute(graph: Graph, nodes: readonly Node[], replaced: ReadonlyMap<Value, Value>): Node[] {
  const final = (x: Value): Value => {
    let at = x
    for (let next = replaced.get(at); next; next = replaced.get(at)) at = next
    return at
  }
  for (const [name, value] of graph.outputs) graph.outputs.set(name, final(value))
  for (const [name, value] of graph.updates) graph.updates.set(name, final(value))
  return nodes.map((node) => {
    if (!node.inputs.some((x) => x && replaced.has(x))) return node
    const rewritten = node as { inputs: readonly (Value | null)[] }
    rewritten.inputs = node.inputs.map((x) => x && final(x))
    return node
  })
}

/** Drops nodes whose outputs nothing needs. */
export function removeDeadCode(graph: Graph): void {
  const live = new Set<Value>(roots(graph))
  graph.nodes = [...graph.nodes]
    .reverse()
    .filter((node) => {
      if (!node.outputs.some((y) => live.has(y))) return false
      for (const x of node.inputs) if (x) live.add(x)
      return true
    })
    .reverse()
}

/** Computes equal expressions of one place once. Values in different segments are left apart: sharing them would cross. */
export function shareSubexpressions(graph: Graph): void {
  const seen = new Map<string, Node>()
  const replaced = new Map<Value, Value>()
  const kept: Node[] = []
  for (const node of graph.nodes) {
    substitute(graph, [node], replaced)
    if (node.op.mutates) {
      kept.push(node)
      continue
    }
    const key = JSON.stringify([
      node.op.domain,
      node.op.opType,
      node.place,
      node.inputs.map((x) => x?.id ?? null),
      node.attributes,
    ])
    const twin = seen.get(key)
    if (twin) for (const [i, y] of node.outputs.entries()) replaced.set(y, twin.outputs[i]!)
    else {
      seen.set(key, node)
      kept.push(node)
    }
  }
  graph.nodes = substitute(graph, kept, replaced)
}

/**
 * Where an op says that it can be computed together with its gradient, replaces both nodes by one: at once where the
 * incoming gradient does not depend on its results, else with a unit gradient that is multiplied afterwards.
 */
export function fuseWithGradients(graph: Graph): void {
  for (const forward of [...graph.nodes]) {
    const rule = forward.op.fusedWithGradient
    if (!rule) continue
    const backwards = graph.nodes.filter(
      (n) => n.op.opType === rule.gradientOp && n.inputs.some((x) => x && x === forward.outputs[2]),
    )
    const backward = backwards.length === 1 ? backwards[0]! : null
    if (!backward) continue
    const pair = rule.fuse(forward, backward)
    if (pair && !upstream(pair.inputs).has(forward)) {
      replacePair(graph, forward, backward, pair)
      continue
    }
    const added = appended(graph, () => graph.at(forward.place, () => rule.fuseUnit?.(forward, backward) ?? null))
    if (!added.result) continue
    const { finish, ...unit } = added.result
    graph.nodes.splice(graph.nodes.indexOf(forward), 0, ...added.nodes)
    const outputs = replacePair(graph, forward, null, unit)
    const finished = appended(graph, () => graph.at(backward.place, () => finish(outputs[unit.backwardOutputs[0]!]!)))
    graph.nodes.splice(graph.nodes.indexOf(backward), 1, ...finished.nodes)
    graph.nodes = substitute(graph, graph.nodes, new Map([[backward.outputs[0]!, finished.result]]))
  }
}

/** The nodes that `build` adds, taken off the end of the graph. */
function appended<T>(graph: Graph, build: () => T): { result: T; nodes: Node[] } {
  const before = graph.nodes.length
  const result = build()
  return { result, nodes: graph.nodes.splice(before) }
}

/** Puts the fused node in the place of the forward, after all that it reads; drops the backward. */
function replacePair(graph: Graph, forward: Node, backward: Node | null, pair: FusedPair): Value[] {
  const known = upstream(pair.inputs)
  const outputs = graph.at(forward.place, () => graph.apply(pair.op, pair.inputs, pair.attributes))
  const fused = graph.nodes.pop()!
  const replaced = new Map<Value, Value>()
  for (const [i, at] of pair.forwardOutputs.entries()) replaced.set(forward.outputs[i]!, outputs[at]!)
  if (backward) for (const [i, at] of pair.backwardOutputs.entries()) replaced.set(backward.outputs[i]!, outputs[at]!)
  const rest = graph.nodes.filter((n) => n !== forward && n !== backward)
  const position = graph.nodes.filter((n) => n !== backward).indexOf(forward)
  const before = rest.slice(0, position)
  const moved = rest.slice(position).filter((n) => known.has(n))
  const after = rest.slice(position).filter((n) => !known.has(n))
  graph.nodes = substitute(graph, [...before, ...moved, fused, ...after], replaced)
  return outputs
}

/** Where an op says that its nodes over one input can be computed together, puts one node in the place of the first. */
export function groupNodes(graph: Graph): void {
  const groups = new Map<string, Node[]>()
  const open = new Map<string, Node[]>()
  for (const node of graph.nodes) {
    const rule = node.op.grouping
    const own = rule?.key(node)
    if (!rule || own === undefined || own === null) continue
    const key = JSON.stringify([node.op.opType, node.place, node.inputs[0]?.id, own])
    let group = open.get(key)
    if (!group || group.length === rule.most) {
      group = []
      open.set(key, group)
      groups.set(`${key} ${groups.size}`, group)
    }
    group.push(node)
  }
  const replaced = new Map<Value, Value>()
  const fused = new Map<Node, Node | null>()
  for (const nodes of groups.values()) {
    if (nodes.length < 2) continue
    const [first] = nodes as [Node]
    const { op, inputs, attributes } = first.op.grouping!.group(nodes)
    const outputs = graph.at(first.place, () => graph.apply(op, inputs, attributes))
    for (const node of nodes) fused.set(node, null)
    fused.set(first, graph.nodes.pop()!)
    for (const [i, node] of nodes.entries()) replaced.set(node.outputs[0]!, outputs[i]!)
  }
  if (fused.size === 0) return
  const kept = graph.nodes.flatMap((node) => {
    const by = fused.get(node)
    return by === undefined ? [node] : by === null ? [] : [by]
  })
  graph.nodes = substitute(graph, kept, replaced)
}

/** Where an op can take over what makes its input 0 and is its only reader, one node stands for both. */
export function absorbProducers(graph: Graph): void {
  const reads = new Map<Value, number>()
  const read = (value: Value | null) => value && reads.set(value, (reads.get(value) ?? 0) + 1)
  for (const node of graph.nodes) node.inputs.forEach(read)
  for (const value of [...graph.outputs.values(), ...graph.updates.values()]) read(value)
  const replaced = new Map<Value, Value>()
  const absorbed = new Set<Node>()
  const kept: Node[] = []
  for (const node of [...graph.nodes]) {
    const producer = node.inputs[0]?.producer
    const isNear = producer?.place.block === node.place.block && producer.place.phase === node.place.phase
    const isFree = producer && isNear && reads.get(node.inputs[0]!) === 1
    const made = isFree ? node.op.absorb?.(node, producer) : null
    if (!made) {
      kept.push(node)
      continue
    }
    const outputs = graph.at(node.place, () => graph.apply(made.op, made.inputs, made.attributes))
    kept.push(graph.nodes.pop()!)
    absorbed.add(producer!)
    for (const [i, y] of node.outputs.entries()) replaced.set(y, outputs[i]!)
  }
  if (absorbed.size === 0) return
  graph.nodes = substitute(
    graph,
    kept.filter((node) => !absorbed.has(node)),
    replaced,
  )
}

/** All nodes that the values depend on. */
function upstream(values: readonly (Value | null)[]): Set<Node> {
  const found = new Set<Node>()
  const visit = (value: Value | null) => {
    const node = value?.producer
    if (!node || found.has(node)) return
    found.add(node)
    node.inputs.forEach(visit)
  }
  values.forEach(visit)
  return found
}

export function simplify(graph: Graph): void {
  removeDeadCode(graph)
  fuseWithGradients(graph)
  shareSubexpressions(graph)
  removeDeadCode(graph)
  groupNodes(graph)
  absorbProducers(graph)
}
