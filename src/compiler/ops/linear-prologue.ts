// What a linear of few rows does to x itself: the norm or the gating before it, whose result nothing else reads, is no node
// of its own then. A node costs as much as some hundred thousand weights.
import type { Node, Value } from '../graph.js'
import type { Replacement } from '../op.js'
import { RmsNorm, rmsNorm } from './norms.js'
import type { LinearAttributes } from './quant-linear.js'
import { SwiGlu, swiGlu } from './rotary.js'

/**
 * How a linear is computed, by what the graph is for and never by its number of rows (design §4): `prefill` as training
 * does, one adapter for all rows; `decode` for few rows, each with its own adapter, by 8-bit products unless strict.
 */
export const linearRoles = { train: 0, prefill: 1, decode: 2 } as const

/** Codes of the attribute `prologue`. */
export const linearPrologues = { none: 0, rmsNorm: 1, swiGlu: 2 } as const

/** Whether the kernel multiplies bytes: the decode role over integer codes, not strict. W0 is input `weightAt`. */
export function hasByteProducts(inputs: readonly (Value | null)[], a: LinearAttributes, weightAt: number): boolean {
  const [codes, scales] = [inputs[weightAt], inputs[weightAt + 1]]
  const hasCodes = codes?.dtype === 'u8' ? scales?.dtype === 'f16' : codes?.dtype === 'i8'
  return a.role === linearRoles.decode && !a.strict && hasCodes
}

/** The linear (or group) with the norm or gating that makes its x; what that takes beside x becomes input `besideAt`. */
export function absorbPrologue(node: Node, producer: Node, besideAt: number, weightAt: number): Replacement | null {
  const attributes = node.attributes as LinearAttributes
  if (attributes.prologue || !hasByteProducts(node.inputs, attributes, weightAt)) return null
  const [x, beside] = producer.inputs as [Value, Value]
  const inputs: (Value | null)[] = [...node.inputs]
  while (inputs.length <= besideAt) inputs.push(null)
  inputs[0] = x
  inputs[besideAt] = beside
  if (producer.op === SwiGlu) {
    return { op: node.op, inputs, attributes: { ...attributes, prologue: linearPrologues.swiGlu } }
  }
  // A norm of each head is none of whole rows
  if (producer.op !== RmsNorm || beside.shape[0] !== x.shape.at(-1)) return null
  const { eps } = producer.attributes as Pick<LinearAttributes, 'eps'>
  return { op: node.op, inputs, attributes: { ...attributes, prologue: linearPrologues.rmsNorm, eps: eps! } }
}

/** x after the prologue, in ops of its own: what the lowering multiplies. */
export function applyPrologue(x: Value, beside: Value | null, { prologue, eps }: LinearAttributes): Value {
  if (!prologue) return x
  return prologue === linearPrologues.swiGlu ? swiGlu(x, beside!) : rmsNorm(x, beside!, eps!.real)
}
