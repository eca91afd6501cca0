// How adapters meet linear calls in a graph: which linears carry one, where its parts lie, LoRA, rsLoRA and DoRA
// (stop 9 of the path of a run). Model code never mentions them.
import type { Graph, Value } from '../compiler/graph.js'
import { dropout } from '../compiler/ops/dropout.js'
import { add, cast, div, mul, sub } from '../compiler/ops/elementwise.js'
import { type AdapterSlot, quantLinear, rowNorms } from '../compiler/ops/quant-linear.js'
import { convert } from '../compiler/ops/rotary.js'
import { slice } from '../compiler/ops/shape.js'
import type { Weight } from '../compiler/ops/weight.js'

/** One linear's adapter inside the flat buffers; offsets and lengths in floats. */
export interface LinearAdapter {
  readonly path: string
  readonly rank: number
  /** alpha / rank, or alpha / √rank with rsLoRA. */
  readonly scaling: number
  /** Start of the slice in the flat buffers: A [rank, in] lies there. */
  readonly offset: number
  readonly length: number
  /** Of B [out, rank], from `offset`. */
  readonly bOffset: number
  /** Of DoRA's magnitude [out], from `offset`. */
  readonly magnitudeOffset?: number
}

/** The adapter that a graph is traced with. */
export interface AdapterShape {
  readonly linears: ReadonlyMap<string, LinearAdapter>
  /** Probability of dropping an entry of the adapter's input while training. */
  readonly dropout: number
  /** A trained scalar head [D] beside the linears, read by reward and value models. */
  readonly score?: { readonly offset: number; readonly length: number }
}

/** Path of the scalar head, as Hugging Face's sequence classifiers name it. */
export const scorePath = 'score'

/** Leaf that holds one linear's slice of the flat parameters. */
export const adapterLeafName = (path: string): string => `adapter.${path}`
/** Leaf that holds ‖W + scaling·BA‖ by rows, constant during a step (DoRA). */
export const normsLeafName = (path: string): string => `norms.${path}`

/** Inputs that key the random numbers of a graph: i64 [N] per row, i64 [1] per step. */
export interface Randomness {
  readonly rowKeys: Value
  readonly seed: Value
}

function slotOf(graph: Graph, adapter: LinearAdapter): AdapterSlot {
  return {
    slice: graph.leaf(adapterLeafName(adapter.path), 'parameter', graph.floatType, [adapter.length]),
    rank: adapter.rank,
    scaling: adapter.scaling,
    bOffset: adapter.bOffset,
  }
}

export interface AdaptedLinear {
  readonly bias: Value | null
  readonly residual: Value | null
  readonly rowSlot: Value | null
  /** Set while training with dropout; `module` numbers the linear. */
  readonly random: (Randomness & { probability: number; module: number }) | null
}

/** x Wᵀ with an adapter. */
export function adaptedLinear(x: Value, weight: Weight, adapter: LinearAdapter, options: AdaptedLinear): Value {
  const g = x.graph
  const slot = slotOf(g, adapter)
  const { random, bias, residual, rowSlot } = options
  const adapterX = random ? dropout(x, random) : null
  if (adapter.magnitudeOffset === undefined) return quantLinear(x, weight, { bias, slot, rowSlot, adapterX, residual })

  // DoRA (arXiv 2402.09353): c (W x + scaling B A x) + bias, c = magnitude / ‖W + scaling·BA‖, the norm constant.
  // With dropout, as PEFT: W x + bias + (c − 1) W x̃ + c scaling B A x̃.
  const magnitude = slice(slot.slice, 0, adapter.magnitudeOffset, adapter.magnitudeOffset + weight.outFeatures)
  const norms = g.leaf(normsLeafName(adapter.path), 'input', g.floatType, [weight.outFeatures])
  const c = div(magnitude, norms)
  const out = g.kernels ? ({ out: 'f32' } as const) : {}
  let y = mul(quantLinear(adapterX ?? x, weight, { slot, rowSlot, ...out }), c)
  if (adapterX) y = add(y, sub(quantLinear(x, weight, out), quantLinear(adapterX, weight, out)))
  if (bias) y = add(y, cast(bias, g.floatType))
  return residual ? add(residual, y) : g.kernels ? convert(y, g.activationType) : y
}

/** ‖W + scaling·BA‖ by rows, as an output that the norms leaf is bound to. */
export function adapterNorms(graph: Graph, weight: Weight, adapter: LinearAdapter): Value {
  return rowNorms(weight, slotOf(graph, adapter))
}
