// A piece of a graph that runs in one session, with canonical names, so that equal blocks give equal text.
import { formatType, type Node, type Value } from './graph.js'
import type { AttributeValue } from './op.js'

export interface Segment {
  readonly name: string
  readonly inputs: readonly Value[]
  readonly nodes: readonly Node[]
  readonly outputs: readonly Value[]
}

/** Names within a segment: inputs i0…, outputs o0…, everything else v0…, in order of appearance. */
export function canonicalNames(segment: Segment): Map<Value, string> {
  const names = new Map<Value, string>()
  for (const [i, value] of segment.inputs.entries()) names.set(value, `i${i}`)
  for (const [i, value] of segment.outputs.entries()) names.set(value, `o${i}`)
  let next = 0
  for (const node of segment.nodes)
    for (const value of node.outputs) if (!names.has(value)) names.set(value, `v${next++}`)
  return names
}

/** Values of a segment that something in it, or outside it, reads. */
export function readValues(segment: Segment): Set<Value> {
  const read = new Set<Value>(segment.outputs)
  for (const node of segment.nodes) for (const x of node.inputs) if (x) read.add(x)
  return read
}

function printAttribute(value: AttributeValue): string {
  if (typeof value === 'number' || typeof value === 'string') return String(value)
  if (Array.isArray(value)) return `[${value.join(', ')}]`
  if ('real' in value) return String(Math.fround(value.real))
  const { type, data } = value as import('./op.js').ConstantTensor
  if (data.length <= 8) return `${formatType(type)}(${data.join(', ')})`
  let hash = 0
  for (const x of data) hash = (Math.imul(hash, 31) + Math.trunc(x * 65536)) | 0
  return `${formatType(type)}(${data.length} values, #${(hash >>> 0).toString(16)})`
}

/** The op type as emitted: `Name_bf16` where the activation outputs are bf16. */
export function emittedOpType(node: Node): string {
  const first = node.op.activationOutputs?.[0]
  return first !== undefined && node.outputs[first]?.dtype === 'bf16' ? `${node.op.opType}_bf16` : node.op.opType
}

/** Stable text of a segment: equal text means that one session serves both. */
export function printSegment(segment: Segment): string {
  const names = canonicalNames(segment)
  const read = readValues(segment)
  const typed = (value: Value) => `${names.get(value)}: ${formatType(value)}`
  const lines = segment.nodes.map((node) => {
    const outputs = node.outputs.map((y) => (read.has(y) ? typed(y) : '_')).join(', ')
    const inputs = node.inputs.map((x) => (x ? (names.get(x) ?? '?') : '-')).join(', ')
    const attributes = Object.entries(node.attributes)
      .filter(([key]) => !node.op.hidden?.includes(key))
      .map(([key, value]) => ` ${key}=${printAttribute(value as AttributeValue)}`)
      .join('')
    return `  ${outputs} = ${emittedOpType(node)}(${inputs})${attributes}`
  })
  const head = `(${segment.inputs.map(typed).join(', ')}) -> (${segment.outputs.map(typed).join(', ')})`
  return [head, ...lines].join('\n')
}
