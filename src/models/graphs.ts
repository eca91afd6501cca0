// The graphs that a model is used through without training: log-probabilities of given tokens, and logits of given rows.
import { type DType, Graph, type GraphOptions, type Shape, type Value } from '../compiler/graph.js'
import { cast } from '../compiler/ops/elementwise.js'
import { matMul } from '../compiler/ops/linear-algebra.js'
import { linearLogProb } from '../compiler/ops/linear-log-prob.js'
import { quantLinear } from '../compiler/ops/quant-linear.js'
import { convert } from '../compiler/ops/rotary.js'
import { maskWords, SAMPLING_COLUMNS, sampleTokens } from '../compiler/ops/sample-tokens.js'
import { gather, reshape } from '../compiler/ops/shape.js'
import { constant } from '../compiler/ops/tensor.js'
import { weightLeaf } from '../compiler/ops/weight.js'
import { adapterLeafName, adapterNorms, scorePath } from './adapter-slot.js'
import type { Architecture } from './architecture.js'
import { ModelContext, type PagedTrace, pagedLeaves, type TraceOptions } from './context.js'

/** Leaves and outputs of the head, beside those of a batch; M rows have a label. */
export const headLeaves = { labels: 'labels', lossRows: 'lossRows', rows: 'rows' } as const

/** How numbers are held: `strict` is fp32 throughout, `fast` stores activations in bf16 where kernels run. */
export type Precision = 'fast' | 'strict'

/** Graph options of a runtime at a precision. */
export function graphOptions(hasKernels: boolean, precision: Precision): GraphOptions {
  return hasKernels && precision === 'fast'
    ? { kernels: true, activationType: 'bf16', strict: false }
    : { kernels: hasKernels, activationType: 'f32', strict: true }
}

/**
 * Log-probability of every labelled row, its entropy and the log of the sum of exponentials of its logits, f32 [M]
 * each; the logits divided by `temperature`.
 */
export function headLogProbs(ctx: ModelContext, hidden: Value, temperature = 1) {
  const g = ctx.graph
  return g.in('head', () => {
    const labels = g.leaf(headLeaves.labels, 'input', 'i32', ['M'])
    const lossRows = g.leaf(headLeaves.lossRows, 'input', 'i32', ['M'])
    return linearLogProb(hidden, ctx.head(), labels, lossRows, {
      distinctRows: ctx.isTraining,
      ...(temperature === 1 ? {} : { temperature: constant(g, [temperature], [1], 'f32') }),
    })
  })
}

/** The adapter's scalar head over the rows that `lossRows` names: f32 [M]. */
export function headScores(ctx: ModelContext, hidden: Value): Value {
  const g = ctx.graph
  return g.in('head', () => {
    const lossRows = g.leaf(headLeaves.lossRows, 'input', 'i32', ['M'])
    const { hiddenSize } = ctx.config
    const weight = g.leaf(adapterLeafName(scorePath), 'parameter', g.floatType, [hiddenSize])
    const rows = gather(convert(hidden, g.floatType), cast(lossRows, 'i64')) // [M, D]
    return reshape(matMul(rows, reshape(weight, [hiddenSize, 1])), lossRows.shape)
  })
}

/** Output `scores` [M]. */
export function rewardGraph(architecture: Architecture, graph: GraphOptions, trace: TraceOptions): Graph {
  const g = new Graph(graph)
  const ctx = new ModelContext(g, trace)
  g.output('scores', headScores(ctx, architecture.build(ctx)))
  return g
}

/** Outputs `logps` [M] and `entropy` [M]. */
export function scoreGraph(
  architecture: Architecture,
  graph: GraphOptions,
  trace: TraceOptions,
  temperature = 1,
): Graph {
  const g = new Graph(graph)
  const ctx = new ModelContext(g, trace)
  const { logps, entropy } = headLogProbs(ctx, architecture.build(ctx), temperature)
  g.output('logps', logps)
  g.output('entropy', entropy)
  return g
}

/** Output `logits` f32 [R, V] of the rows named by the leaf `rows` i32 [R]. */
export function logitsGraph(architecture: Architecture, graph: GraphOptions, trace: TraceOptions): Graph {
  const g = new Graph(graph)
  const ctx = new ModelContext(g, trace)
  const hidden = architecture.build(ctx)
  const rows = g.leaf(headLeaves.rows, 'input', 'i32', ['R'])
  g.output(
    'logits',
    g.in('head', () => quantLinear(gather(hidden, cast(rows, 'i64')), ctx.head(), { out: 'f32' })),
  )
  return g
}

/**
 * One step of generation over the paged cache: writes the rows' keys and values and draws the tokens that follow
 * `sampleRows`. Outputs `tokens` i32 [R], `logps` f32 [R], `topIds` i32 and `topLogps` f32 [R, 20].
 */
export function pagedGraph(
  architecture: Architecture,
  graph: GraphOptions,
  trace: TraceOptions & { paged: PagedTrace },
): Graph {
  const g = new Graph(graph)
  const ctx = new ModelContext(g, trace)
  const hidden = architecture.build(ctx)
  const { config } = trace
  const input = (name: string, dtype: DType, shape: Shape) => g.leaf(name, 'input', dtype, shape)
  g.in('head', () => {
    const rows = gather(hidden, cast(input(pagedLeaves.sampleRows, 'i32', ['R']), 'i64'))
    // The head reads few rows whatever the role, and a draw must not depend on which program made it.
    const logits = quantLinear(rows, ctx.head(), { out: 'f32', role: 'decode' })
    const drawn = sampleTokens(logits, {
      sampling: input(pagedLeaves.sampling, g.floatType, ['R', SAMPLING_COLUMNS]),
      seeds: input(pagedLeaves.sampleKeys, 'i64', ['R']),
      positions: input(pagedLeaves.samplePositions, 'i32', ['R']),
      editRows: input(pagedLeaves.editRows, 'i32', ['E']),
      editTokens: input(pagedLeaves.editTokens, 'i32', ['E']),
      editCounts: input(pagedLeaves.editCounts, g.floatType, ['E', 2]),
      editBias: input(pagedLeaves.editBias, g.floatType, ['E']),
      maskRows: input(pagedLeaves.maskRows, 'i32', ['R']),
      allowed: input(pagedLeaves.allowed, 'i32', ['C', maskWords(config.vocabSize)]),
    })
    for (const [name, value] of Object.entries(drawn)) g.output(name, value)
  })
  return g
}

/** Output `hidden` f32 [N, D]: what the head would read. */
export function hiddenGraph(architecture: Architecture, graph: GraphOptions, trace: TraceOptions): Graph {
  const g = new Graph(graph)
  const ctx = new ModelContext(g, trace)
  const hidden = architecture.build(ctx)
  g.output(
    'hidden',
    g.in('head', () => convert(hidden, 'f32')),
  )
  return g
}

/** Output `norms.<path>` f32 [out] for every linear whose adapter has a magnitude (DoRA). */
export function normsGraph(graph: GraphOptions, trace: TraceOptions): Graph {
  const g = new Graph(graph)
  for (const adapter of trace.adapter?.linears.values() ?? []) {
    if (adapter.magnitudeOffset === undefined) continue
    const stored = trace.formats.get(`${adapter.path}.weight`)
    if (!stored) throw new Error(`the base has no matrix ${adapter.path}.weight`)
    const [outFeatures, inFeatures] = stored.shape as [number, number]
    const weight = weightLeaf(g, `${adapter.path}.weight`, stored.format, stored.block, outFeatures, inFeatures)
    g.in(adapter.path, () => g.output(`norms.${adapter.path}`, adapterNorms(g, weight, adapter)))
  }
  return g
}
