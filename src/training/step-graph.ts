// The graph of one micro-batch: forward, loss, backward; and the optimizer's (stops 8 and 10).
import { backward } from '../compiler/autodiff.js'
import { Graph, type GraphOptions, type Value } from '../compiler/graph.js'
import { adamW } from '../compiler/ops/adamw.js'
import { scale, stopGradient, sub } from '../compiler/ops/elementwise.js'
import { scalar } from '../compiler/ops/tensor.js'
import { adapterLeafName, scorePath } from '../models/adapter-slot.js'
import type { Architecture } from '../models/architecture.js'
import { ModelContext, type TraceOptions } from '../models/context.js'
import { headLogProbs, headScores } from '../models/graphs.js'
import type { Objective, ObjectiveContext } from './objective.js'

/**
 * Outputs `loss` (scalar) and what the head gives, [M] each: `logps` and `entropy`, or `scores`; beside them the
 * objective's own. Adds the adapter's gradients to `grad.adapter.<path>`.
 */
export function trainGraph(
  architecture: Architecture,
  graph: GraphOptions,
  trace: TraceOptions,
  objective: Objective,
): Graph {
  const { g, total } = objectiveGraph(architecture, graph, { ...trace, training: true }, objective)
  const seed = g.at({ block: 'head', phase: 'backward' }, () => scalar(g, 1, total.dtype))
  const parameters = new Set([...(trace.adapter?.linears.keys() ?? []), scorePath].map(adapterLeafName))
  const trained = g.leaves.filter((v) => v.leaf && parameters.has(v.leaf.name))
  if (trained.length === 0) throw new Error('no linear of this model carries an adapter: there is nothing to train')
  backward(g, new Map([[total, seed]]), trained, { accumulate: true })
  return g
}

/** The forward part alone, with the same outputs. */
export function evaluationGraph(
  architecture: Architecture,
  graph: GraphOptions,
  trace: TraceOptions,
  objective: Objective,
): Graph {
  return objectiveGraph(architecture, graph, trace, objective).g
}

function objectiveGraph(architecture: Architecture, graph: GraphOptions, trace: TraceOptions, objective: Objective) {
  const g = new Graph(graph)
  const ctx = new ModelContext(g, trace)
  const hidden = architecture.build(ctx)
  const heads = objective.head === 'score' ? scoreHead(ctx, hidden) : logProbHead(ctx, hidden, objective.temperature)
  const total = g.in('head', () => {
    for (const name of ['logps', 'entropy', 'scores'] as const) if (heads[name]) g.output(name, heads[name])
    const value = objective.build({
      ...(heads as Required<HeadValues>),
      graph: g,
      input: (name, shape) => g.leaf(name, 'input', g.floatType, shape),
      output: (name, result) => g.output(name, result),
    })
    g.output('loss', value)
    return value
  })
  return { g, total }
}

type HeadValues = Partial<Pick<ObjectiveContext, 'logps' | 'entropy' | 'logSumSquares' | 'scores'>>

const scoreHead = (ctx: ModelContext, hidden: Value): HeadValues => ({ scores: headScores(ctx, hidden) })

function logProbHead(ctx: ModelContext, hidden: Value, temperature = 1): HeadValues {
  const { logps, entropy, lse } = headLogProbs(ctx, hidden, temperature)
  return {
    logps,
    entropy,
    // log Σ p² = lse(2 z) − 2 lse(z)
    logSumSquares() {
      const doubled = headLogProbs(ctx, stopGradient(hidden), temperature / 2).lse
      return sub(doubled, scale(stopGradient(lse), 2))
    },
  }
}

/** The update of `length` parameters as one group. Leaves `params`, `grads`, `adamM`, `adamV`, `hyper`, `groups`, `groupHyper`. */
export function updateGraph(graph: GraphOptions, length: number): Graph {
  const g = new Graph({ ...graph, activationType: 'f32', strict: true })
  const flat = (name: string) => g.leaf(name, 'state', 'f32', [length])
  const state = { params: flat('params'), grads: flat('grads'), m: flat('adamM'), v: flat('adamV') }
  const updated = adamW(
    state,
    g.leaf('hyper', 'input', 'f32', [8]),
    g.leaf('groups', 'input', 'i64', [1, 2]),
    g.leaf('groupHyper', 'input', 'f32', [1, 2]),
    [{ offset: 0, length }],
  )
  g.updates.set('params', updated.params)
  g.updates.set('adamM', updated.m)
  g.updates.set('adamV', updated.v)
  g.output('gradNorm', updated.gradNorm)
  return g
}
