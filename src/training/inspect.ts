// `espalier inspect RECIPE`: the graphs that a run would compile, as stable text, without opening a runtime or data.
import { type Compiled, compile } from '../compiler/compile.js'
import { openBase } from '../models/base-directory.js'
import { prepareBase } from '../models/fetch.js'
import { graphOptions, rewardGraph, scoreGraph } from '../models/graphs.js'
import { architectureOf } from '../models/index.js'
import { openAdapter } from './adapter.js'
import type { TrainableRecipe } from './prepare.js'
import { stages } from './stages/index.js'
import type { StageDefinition } from './stages/stage.js'
import { trainGraph, updateGraph } from './step-graph.js'

/** The graphs of a run: a training step, its update, evaluation. */
export const graphNames = ['train', 'update', 'score'] as const
export type GraphName = (typeof graphNames)[number]

export interface InspectGraphOptions {
  graph?: GraphName
  /** false: the standard lowering instead of our operators. */
  kernels?: boolean
  signal?: AbortSignal
}

export interface InspectedGraph {
  base: string
  graph: GraphName
  tokens: number
  /** Distinct segments as text; each is one ONNX Runtime session. */
  models: string[]
  /** The steps in order, each with the index of its model. */
  steps: { name: string; model: number }[]
  workspaceMb: number
  /** Of one run at the largest size, recomputation included. */
  gflop: number
}

/** What inspection reads of any stage's settings. */
interface InspectedStage {
  maxLength?: number
  maxPromptLength?: number
  maxCompletionLength?: number
  microBatchSize: number
  precision: 'fast' | 'strict'
  recompute: 'auto' | 'all' | 'none'
  memoryBudgetMb?: number
  startAdapter?: string
}

export async function inspectRecipe(
  recipe: TrainableRecipe,
  options: InspectGraphOptions = {},
): Promise<InspectedGraph> {
  const graph = options.graph ?? 'train'
  const { source, format } = typeof recipe.base === 'string' ? { source: recipe.base, format: undefined } : recipe.base
  const found = await prepareBase(source, { format, signal: options.signal })
  const opened = openBase(found.dir)
  const definition = (stages as unknown as Record<string, StageDefinition>)[recipe.stage.type]
  if (!definition)
    throw new Error(`stage ${recipe.stage.type} is not known; there are ${Object.keys(stages).join(', ')}`)
  const stage = definition.schema.parse(recipe.stage) as InspectedStage
  const objective = definition.objective(stage)
  const isScore = objective.head === 'score'
  const adapter = openAdapter(opened, {
    lora: recipe.adapter,
    startAdapter: stage.startAdapter,
    seed: 0,
    baseName: found.name,
    hasScore: isScore,
  })
  const { microBatchSize } = stage
  const length = stage.maxLength ?? (stage.maxPromptLength ?? 0) + (stage.maxCompletionLength ?? 0)
  const tokens = length * microBatchSize * (definition.sequencesPerItem ?? 1)
  // What an objective counts beside tokens, pairs or sequences, is what a micro-batch counts
  const dims = { N: tokens, M: tokens, S: tokens + 1, P: microBatchSize, Q: microBatchSize }
  const how = graphOptions(options.kernels ?? true, stage.precision)
  const architecture = architectureOf(opened.config.modelType)
  const trace = { config: opened.config, formats: opened.formats, adapter: adapter.layout.adapter }
  const compilers: Record<GraphName, () => Compiled> = {
    train: () =>
      compile(trainGraph(architecture, how, trace, objective), {
        dims,
        recompute: stage.recompute,
        ...(stage.memoryBudgetMb ? { memoryBudgetBytes: stage.memoryBudgetMb * 2 ** 20 } : {}),
      }),
    update: () => compile(updateGraph(how, adapter.layout.length), { cut: 'none', dims: {} }),
    score: () => compile((isScore ? rewardGraph : scoreGraph)(architecture, how, trace), { dims }),
  }
  const compiled = compilers[graph]()
  return {
    base: found.name,
    graph,
    tokens,
    models: compiled.models.map(({ text }) => text),
    steps: compiled.steps.map(({ name, model }) => ({ name, model })),
    workspaceMb: compiled.workspaceBytes / 2 ** 20,
    gflop: compiled.flops / 1e9,
  }
}
