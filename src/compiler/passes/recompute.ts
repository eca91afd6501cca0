// Decides, block by block, which forward values the backward reads from memory and which it computes again:
// least time under a memory budget (selective recomputation, arXiv 2205.05198).
import { bytesOf, type Graph, type Node, sizeWith, type Value } from '../graph.js'
import { convert } from '../ops/rotary.js'

export type RecomputePolicy = 'auto' | 'all' | 'none'

export interface RecomputeOptions {
  readonly policy: RecomputePolicy
  /** Bytes that all saved values together may take. */
  readonly budgetBytes: number
  /** Largest sizes of the symbolic dimensions. */
  readonly dims: Readonly<Record<string, number>>
  /** Keep saved f32 values in bf16. */
  readonly narrow: boolean
}

// Costs are compared with each other only: a machine of 400 GFLOP/s in products and 20 GB/s in memory (design §5).
const SECONDS_PER_FLOP = 1 / 400e9
const SECONDS_PER_BYTE = 1 / 20e9
// Writing and reading a saved value, and as much again for the pages it occupies: what is nearly free to compute is not
// kept.
const SECONDS_PER_SAVED_BYTE = 4 * SECONDS_PER_BYTE
/** More candidates than this are cut to the largest ones; the others are recomputed. */
const MAX_CANDIDATES = 14

const bytesIn = (value: Value, dims: RecomputeOptions['dims']) => sizeWith(value.shape, dims) * bytesOf[value.dtype]

function seconds(node: Node, dims: RecomputeOptions['dims']): number {
  const touched = [...node.inputs, ...node.outputs].reduce(
    (n, v) => n + (v && v.leaf?.role !== 'weight' ? bytesIn(v, dims) : 0),
    0,
  )
  return Math.max((node.op.flops?.(node, dims) ?? 0) * SECONDS_PER_FLOP, touched * SECONDS_PER_BYTE)
}

interface Block {
  readonly name: string
  readonly forward: ReadonlySet<Node>
  /** Nodes of this block's backward, in order. */
  readonly backward: Node[]
  /** Values of its forward that its backward reads. */
  readonly wanted: readonly Value[]
}

/** Rewrites the graph so that only the chosen values cross from a block's forward to its backward. */
export function planRecomputation(graph: Graph, options: RecomputeOptions): { savedBytes: number } {
  const blocks = findBlocks(graph)
  // Equal blocks get equal shares and so the same choice, and keep sharing a session.
  const budget = options.budgetBytes / Math.max(1, blocks.length)
  const choices = new Map<string, number[]>()
  let savedBytes = 0
  for (const block of blocks) {
    const outputs = [...block.forward].flatMap((n) => n.outputs)
    const key = JSON.stringify([
      [...block.forward].map((n) => [n.op.opType, n.outputs.map((y) => [y.dtype, y.shape])]),
      block.wanted.map((v) => outputs.indexOf(v)),
    ])
    let choice = choices.get(key)
    if (!choice) {
      choice = [...choose(block, options, budget)].map((v) => outputs.indexOf(v))
      choices.set(key, choice)
    }
    savedBytes += rewrite(graph, block, new Set(choice.map((i) => outputs[i]!)), options)
  }
  return { savedBytes }
}

function findBlocks(graph: Graph): Block[] {
  const names = [...new Set(graph.nodes.filter((n) => n.place.phase === 'backward').map((n) => n.place.block))]
  return names
    .filter((name) => name !== 'head')
    .map((name) => {
      const forward = new Set(graph.nodes.filter((n) => n.place.block === name && n.place.phase === 'forward'))
      const backward = graph.nodes.filter((n) => n.place.block === name && n.place.phase === 'backward')
      const wanted = new Set<Value>()
      for (const node of backward)
        for (const x of node.inputs) if (x?.producer && forward.has(x.producer)) wanted.add(x)
      return { name, forward, backward, wanted: [...wanted] }
    })
}

/** Nodes to run again so that every wanted value is there, given what is saved. */
function rerun(block: Block, saved: ReadonlySet<Value>): Set<Node> {
  const nodes = new Set<Node>()
  const visit = (value: Value) => {
    const node = value.producer
    if (!node || saved.has(value) || nodes.has(node) || !block.forward.has(node)) return
    nodes.add(node)
    for (const x of node.inputs) if (x) visit(x)
  }
  block.wanted.forEach(visit)
  return nodes
}

/** Bytes of a value kept for the backward: f32 activations are narrowed, row statistics are not worth it. */
function savedSize(value: Value, options: RecomputeOptions): number {
  const bytes = bytesIn(value, options.dims)
  return options.narrow && value.dtype === 'f32' && Number(value.shape[1]) >= 64 ? bytes / 2 : bytes
}

/** What this block keeps. Candidates are whole nodes: keeping one output of a node spares nothing if another is missing. */
function choose(block: Block, options: RecomputeOptions, budget: number): ReadonlySet<Value> {
  if (options.policy === 'none') return new Set(block.wanted)
  if (options.policy === 'all') return new Set()
  const pool = new Set<Value>(block.wanted)
  for (const node of rerun(block, new Set()))
    for (const x of node.inputs) if (x?.producer && block.forward.has(x.producer)) pool.add(x)
  const candidates = [...block.forward]
    // Constants are recomputed for nothing.
    .filter((n) => n.inputs.length > 0 && n.outputs.some((y) => pool.has(y)))
    .map((node) => {
      const values = node.outputs.filter((y) => pool.has(y))
      return { values, bytes: values.reduce((n, v) => n + savedSize(v, options), 0) }
    })
    .sort((a, b) => b.bytes - a.bytes)
    .slice(0, MAX_CANDIDATES)
  let best: { saved: ReadonlySet<Value>; time: number } | null = null
  for (let mask = 0; mask < 1 << candidates.length; mask++) {
    const chosen = candidates.filter((_, i) => mask & (1 << i))
    const bytes = chosen.reduce((n, c) => n + c.bytes, 0)
    if (bytes > budget) continue
    const saved = new Set(chosen.flatMap((c) => c.values))
    let time = bytes * SECONDS_PER_SAVED_BYTE
    for (const node of rerun(block, saved)) time += seconds(node, options.dims)
    if (!best || time < best.time) best = { saved, time }
  }
  return best?.saved ?? new Set()
}

/** Clones what is run again into the backward and narrows what is saved. Returns the bytes saved by this block. */
function rewrite(graph: Graph, block: Block, saved: ReadonlySet<Value>, options: RecomputeOptions): number {
  const again = rerun(block, saved)
  const place = { block: block.name, phase: 'backward' } as const
  const before = graph.nodes
  const local = new Map<Value, Value>()
  const stored = new Map<Value, Value[]>()
  let bytes = 0

  const forwardExtras: Node[] = []
  const build = <T>(list: Node[], place_: Node['place'], make: () => T): T => {
    graph.nodes = []
    const result = graph.at(place_, make)
    list.push(...graph.nodes)
    return result
  }
  const keep = (value: Value, narrow: boolean): Value => {
    const type = narrow ? 'bf16' : value.dtype
    const known = (stored.get(value) ?? []).find((v) => v.dtype === type)
    if (known) return known
    const result = narrow ? build(forwardExtras, value.producer!.place, () => convert(value, 'bf16')) : value
    stored.set(value, [...(stored.get(value) ?? []), result])
    bytes += bytesIn(result, options.dims)
    return result
  }
  // What the backward sees of a value: its recomputed twin, its bf16 copy where the reader takes one, or itself.
  const resolve = (value: Value | null, node: Node, index: number): Value | null => {
    if (!value) return null
    const cloned = local.get(value)
    if (cloned) return cloned
    const from = value.producer?.place
    if (from?.phase !== 'forward' || from.block === 'head') return value
    return keep(value, options.narrow && value.dtype === 'f32' && (node.op.activationInputs?.includes(index) ?? false))
  }

  const clones: Node[] = []
  for (const node of before.filter((n) => again.has(n))) {
    const inputs = node.inputs.map((x, i) => resolve(x, node, i))
    const outputs = build(clones, place, () => graph.apply(node.op, inputs, node.attributes))
    for (const [i, y] of node.outputs.entries()) local.set(y, outputs[i]!)
  }
  for (const node of block.backward) {
    const rewritten = node as { inputs: readonly (Value | null)[] }
    rewritten.inputs = node.inputs.map((x, i) => resolve(x, node, i))
  }
  const first = before.indexOf(block.backward[0]!)
  const nodes: Node[] = []
  before.forEach((node, i) => {
    if (i === first) nodes.push(...clones)
    nodes.push(node)
    // A narrowed copy is made where its value is.
    for (const extra of forwardExtras) if (extra.inputs[0]!.producer === node) nodes.push(extra)
  })
  graph.nodes = nodes
  return bytes
}
