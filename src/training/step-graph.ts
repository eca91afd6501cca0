// The graph of one micro-batch: forward, loss, backward; and the optimizer's (stops 8 and 10).
import { backward } from '../compiler/autodiff.js'
import { Graph, type GraphOptions } from '../compiler/graph.js'
import { adamW } from '../compiler/ops/adamw.js'
import { neg } from '../compiler/ops/elementwise.js'
import { reduceSum } from '../compiler/ops/reduce.js'
import { scalar } from '../compiler/ops/tensor.js'
import { adapterLeafName } from '../models/adapter-slot.js'
import type { Architecture } from '../models/architecture.js'
import { ModelContext, type TraceOptions } from '../models/context.js'
import { headLogProbs } from '../models/graphs.js'
import type { TokenLoss } from './losses/loss.js'

/** Outputs `loss`, `nll` (scalars), `logps`, `entropy` [M]; adds the adapter's gradients to `grad.adapter.<path>`. */
export function trainGraph(
  architecture: Architecture,
  graph: GraphOptions,
  trace: TraceOptions,
  loss: TokenLoss,
): Graph {
  const g = new Graph(graph)
  const ctx = new ModelContext(g, { ...trace, training: true })
  const { logps, entropy } = headLogProbs(ctx, architecture.build(ctx))
  const total = g.in('head', () => {
    const weights = g.leaf('lossWeights', 'input', g.floatType, ['M'])
    g.output('logps', logps)
    g.output('entropy', entropy)
    g.output('nll', neg(reduceSum(logps, [0])))
    const value = loss.build(logps, weights)
    g.output('loss', value)
    return value
  })
  const seed = g.at({ block: 'head', phase: 'backward' }, () => scalar(g, 1, total.dtype))
  const parameters = new Set([...(trace.adapter?.linears.keys() ?? [])].map(adapterLeafName))
  const trained = g.leaves.filter((v) => v.leaf && parameters.has(v.leaf.name))
  if (trained.length === 0) throw new Error('no linear of this model carries an adapter: there is nothing to train')
  backward(g, new Map([[total, seed]]), trained, { accumulate: true })
  return g
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
