// Cuts a graph at block boundaries into segments that run one after another (design §3).
import type { Graph, Node, Value } from '../graph.js'
import type { Segment } from '../segment.js'

export type Cut = 'blocks' | 'none'

/** The segment that a place belongs to. Only blocks keep their backward apart; the head's runs right after its forward. */
export function segmentOf(node: Node, cut: Cut): string {
  if (cut === 'none') return 'all'
  const { block, phase } = node.place
  if (phase === 'forward' || block === 'head') return block
  return `${block}.backward`
}

/** Groups nodes by segment, in order of first appearance, with the values that enter and leave each. */
export function cutGraph(graph: Graph, cut: Cut): Segment[] {
  const groups = new Map<string, Node[]>()
  for (const node of graph.nodes) {
    const name = segmentOf(node, cut)
    const nodes = groups.get(name)
    if (nodes) nodes.push(node)
    else groups.set(name, [node])
  }
  const home = new Map<Value, string>()
  for (const [name, nodes] of groups) for (const node of nodes) for (const y of node.outputs) home.set(y, name)
  const leaving = new Set<Value>([...graph.outputs.values(), ...graph.updates.values()])
  for (const [name, nodes] of groups)
    for (const node of nodes) for (const x of node.inputs) if (x && home.has(x) && home.get(x) !== name) leaving.add(x)

  const done = new Set<string>()
  return [...groups].map(([name, nodes]) => {
    const inputs = new Set<Value>()
    const outputs = new Set<Value>()
    for (const node of nodes) {
      for (const x of node.inputs) {
        if (!x || home.get(x) === name) continue
        const from = home.get(x)
        if (from !== undefined && !done.has(from))
          throw new Error(`segment ${name} reads a value of ${from}, which runs later`)
        inputs.add(x)
      }
      for (const y of node.outputs) if (leaving.has(y)) outputs.add(y)
    }
    done.add(name)
    return { name, inputs: [...inputs], nodes, outputs: [...outputs] }
  })
}
