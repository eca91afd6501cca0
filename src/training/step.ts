// The compiled training step over the runtime: one base, one adapter, one loss (stops 8 to 11).

import { gradientLeafName } from '../compiler/autodiff.js'
import { type Compiled, compile } from '../compiler/compile.js'
import { sizeWith } from '../compiler/graph.js'
import { adamWHyper } from '../compiler/ops/adamw.js'
import type { RecomputePolicy } from '../compiler/passes/recompute.js'
import {
  type AdapterShape,
  adapterLeafName,
  type LinearAdapter,
  normsLeafName,
  scorePath,
} from '../models/adapter-slot.js'
import { batchLeaves, type TraceOptions } from '../models/context.js'
import { graphOptions, headLeaves, normsGraph, type Precision } from '../models/graphs.js'
import type { LoadedBase } from '../models/loaded-base.js'
import { type BoundProgram, bindProgram, type LeafMemory } from '../runtime/bind.js'
import type { DeviceBuffer } from '../runtime/types.js'
import { type Dims, fillBatch, sizesOf } from './batch-inputs.js'
import { type Objective, programInputs } from './objective.js'
import { tokenMean } from './objectives/token-mean.js'
import type {
  AccumulateOptions,
  AccumulateResult,
  AdapterLayout,
  MicroBatch,
  ScoredModel,
  ScoreResult,
  TrainProgram,
  UpdateHyper,
} from './program.js'
import { type FrozenAdapter, openFrozenScorer, openScorer, type Scorer } from './scorer.js'
import { evaluationGraph, trainGraph, updateGraph } from './step-graph.js'

export interface TrainProgramOptions {
  readonly base: LoadedBase
  readonly layout: AdapterLayout
  readonly adapter: AdapterShape
  /** Default: cross-entropy, the mean over target tokens. */
  readonly objective?: Objective
  /** The frozen model that is scored as `reference`; null: the base alone. */
  readonly reference?: FrozenAdapter | null
  /** The most tokens of a micro-batch. */
  readonly maxTokens: number
  /** The most labelled rows of a micro-batch. Default: maxTokens. */
  readonly maxLossRows?: number
  /** The most documents of a micro-batch. Default: maxTokens. */
  readonly maxDocuments?: number
  /** The most of each dimension of the objective's own. */
  readonly maxDims?: Readonly<Record<string, number>>
  readonly precision?: Precision
  readonly recompute?: RecomputePolicy
  /** For the values kept between forward and backward. */
  readonly memoryBudgetBytes?: number
  /** Memory of a program that never runs at the same time; used where it is large enough. */
  readonly workspace?: DeviceBuffer
  /** Keys dropout. */
  readonly seed?: number
}

const FLOAT_BYTES = 4

/** A program over native memory that others may read: the engine samples from `memory`, other programs share `workspace`. */
export interface LiveProgram extends TrainProgram {
  /** The flat parameters. */
  readonly memory: DeviceBuffer
  /** Free between runs. */
  readonly workspace: DeviceBuffer
}

/** Compiles, binds, and gives the adapter its initial memory (zeros: the caller fills `params`). */
export async function openTrainProgram(options: TrainProgramOptions): Promise<LiveProgram> {
  const { base, layout, adapter } = options
  const { runtime } = base
  const graph = graphOptions(runtime.info.kernels, options.precision ?? 'fast')
  const dims = {
    N: options.maxTokens,
    M: options.maxLossRows ?? options.maxTokens,
    S: (options.maxDocuments ?? options.maxTokens) + 1,
    ...options.maxDims,
  }
  const trace: TraceOptions = { config: base.config, formats: base.formats, adapter }
  const compiled = compile(
    trainGraph(base.architecture, graph, trace, options.objective ?? tokenMean('crossEntropy')),
    {
      dims,
      recompute: options.recompute ?? 'auto',
      memoryBudgetBytes: options.memoryBudgetBytes,
    },
  )
  const flat = Array.from({ length: 4 }, () => runtime.allocate(layout.length * FLOAT_BYTES))
  const [params, grads, adamM, adamV] = flat as [DeviceBuffer, DeviceBuffer, DeviceBuffer, DeviceBuffer]
  const state: Record<string, DeviceBuffer> = { params, grads, adamM, adamV }
  const given = options.workspace
  const workspace =
    given && given.byteLength >= compiled.workspaceBytes
      ? given
      : runtime.allocate(Math.max(64, compiled.workspaceBytes))

  const memory = new Map<string, LeafMemory>()
  for (const linear of adapter.linears.values()) {
    const byteOffset = linear.offset * FLOAT_BYTES
    memory.set(adapterLeafName(linear.path), { buffer: params, byteOffset })
    memory.set(gradientLeafName(adapterLeafName(linear.path)), { buffer: grads, byteOffset })
  }
  if (adapter.score) {
    const byteOffset = adapter.score.offset * FLOAT_BYTES
    memory.set(adapterLeafName(scorePath), { buffer: params, byteOffset })
    memory.set(gradientLeafName(adapterLeafName(scorePath)), { buffer: grads, byteOffset })
  }
  const leaf = (name: string) => memory.get(name) ?? base.leaf(name)

  let norms: BoundProgram | null = null
  if ([...adapter.linears.values()].some((l) => l.magnitudeOffset !== undefined)) {
    norms = await bindProgram(runtime, compile(normsGraph(graph, trace), { dims, cut: 'blocks' }), { leaf })
    for (const linear of adapter.linears.values())
      if (linear.magnitudeOffset !== undefined)
        memory.set(normsLeafName(linear.path), { buffer: norms.memoryOf(normsLeafName(linear.path)), byteOffset: 0 })
  }
  const train = await bindProgram(runtime, compiled, { leaf, workspace })
  const update = await bindProgram(runtime, compile(updateGraph(graph, layout.length), { cut: 'none', dims: {} }), {
    leaf: (name) => (state[name] ? { buffer: state[name], byteOffset: 0 } : null),
  })
  if (update.has('groups')) update.i64('groups').set([0n, BigInt(layout.length)]) // the lowering knows them
  return new CompiledTrainProgram(options, dims, compiled, { train, update, norms }, state, workspace, leaf)
}

interface Programs {
  readonly train: BoundProgram
  readonly update: BoundProgram
  readonly norms: BoundProgram | null
}

class CompiledTrainProgram implements LiveProgram {
  readonly layout: AdapterLayout
  readonly params: Float32Array
  readonly grads: Float32Array
  readonly adamM: Float32Array
  readonly adamV: Float32Array
  readonly plannedBytes: number
  private readonly options: TrainProgramOptions
  private readonly dims: Dims
  private readonly programs: Programs
  private readonly buffers: DeviceBuffer[]
  readonly workspace: DeviceBuffer
  readonly memory: DeviceBuffer
  private readonly leaf: (name: string) => LeafMemory | null
  private readonly scorers = new Map<ScoredModel, Promise<Scorer>>()
  private readonly compiled: Compiled
  /** Inputs of the graph that come with each micro-batch; what a loss declares and does not read is not among them. */
  private readonly objectiveInputs: readonly string[]
  private evaluation: Promise<BoundProgram> | undefined
  private normsAreStale = true

  constructor(
    options: TrainProgramOptions,
    dims: Dims,
    compiled: Compiled,
    programs: Programs,
    state: Record<string, DeviceBuffer>,
    workspace: DeviceBuffer,
    leaf: (name: string) => LeafMemory | null,
  ) {
    this.options = options
    this.dims = dims
    this.compiled = compiled
    const own = new Set<string>([
      ...Object.values(batchLeaves),
      ...Object.values(headLeaves),
      ...Object.values(programInputs),
    ])
    const norms = new Set([...options.adapter.linears.keys()].map(normsLeafName))
    this.objectiveInputs = compiled.leaves
      .filter(({ name, role }) => role === 'input' && !own.has(name) && !norms.has(name))
      .map(({ name }) => name)
    this.programs = programs
    this.workspace = workspace
    this.leaf = leaf
    this.layout = options.layout
    const view = (name: string) => {
      const { bytes } = state[name]!
      return new Float32Array(bytes.buffer as ArrayBuffer, bytes.byteOffset, options.layout.length)
    }
    this.params = view('params')
    this.grads = view('grads')
    this.adamM = view('adamM')
    this.adamV = view('adamV')
    this.buffers = [...Object.values(state), ...(workspace === options.workspace ? [] : [workspace])]
    this.memory = state.params!
    this.plannedBytes =
      options.base.weightBytes +
      this.buffers.reduce((n, b) => n + b.byteLength, 0) +
      programs.train.ownedBytes +
      programs.update.ownedBytes +
      (programs.norms?.ownedBytes ?? 0) +
      compiled.intermediateBytes +
      (options.reference?.values.byteLength ?? 0)
  }

  async accumulate(batch: MicroBatch, options: AccumulateOptions): Promise<AccumulateResult> {
    const { train } = this.programs
    if (options.first) this.grads.fill(0)
    await this.refreshNorms()
    this.fillObjective(train, batch, options.lossScale)
    if (train.has(batchLeaves.rowKeys)) this.fillRandomness(train, batch, options.rngStep)
    return this.runObjective(train, batch, options.signal)
  }

  async evaluate(batch: MicroBatch, options: { lossScale: number }): Promise<AccumulateResult> {
    this.normsAreStale = true
    await this.refreshNorms()
    this.evaluation ??= this.openEvaluation()
    const program = await this.evaluation
    this.fillObjective(program, batch, options.lossScale)
    return this.runObjective(program, batch)
  }

  private openEvaluation(): Promise<BoundProgram> {
    const { base, adapter, precision, objective } = this.options
    const compiled = compile(
      evaluationGraph(
        base.architecture,
        graphOptions(base.runtime.info.kernels, precision ?? 'fast'),
        { config: base.config, formats: base.formats, adapter },
        objective ?? tokenMean('crossEntropy'),
      ),
      { dims: this.dims },
    )
    const shared = compiled.workspaceBytes <= this.workspace.byteLength ? { workspace: this.workspace } : {}
    return bindProgram(base.runtime, compiled, { leaf: this.leaf, ...shared })
  }

  private fillObjective(train: BoundProgram, batch: MicroBatch, lossScale: number): void {
    const dims = fillBatch(train, batch, this.dims)
    for (const name of Object.values(programInputs))
      if (train.has(name)) train.f32(name).fill(lossScale, 0, name === 'lossWeights' ? dims.M : 1)
    for (const name of this.objectiveInputs) {
      if (!train.has(name)) continue // read by the training graph alone
      const values = batch.inputs?.[name]
      if (!values) throw new Error(`the objective reads ${name}, and the micro-batch has none`)
      const into = train.f32(name)
      if (values.length > into.length) throw new Error(`${name}: ${values.length} values, compiled for ${into.length}`)
      into.set(values)
    }
  }

  private async runObjective(train: BoundProgram, batch: MicroBatch, signal?: AbortSignal): Promise<AccumulateResult> {
    const dims = sizesOf(batch)
    await train.run({ dims, signal })
    const outputs = Object.fromEntries(
      this.compiled.outputs.map(({ name, shape }) => [name, train.f32(name).slice(0, sizeWith(shape, dims))]),
    )
    return { lossSum: outputs.loss![0]!, tokens: dims.M, outputs }
  }

  async update(hyper: UpdateHyper): Promise<{ gradNorm: number }> {
    const { update } = this.programs
    const values = update.f32('hyper')
    values[adamWHyper.learningRate] = hyper.learningRate
    values[adamWHyper.beta1] = hyper.beta1
    values[adamWHyper.beta2] = hyper.beta2
    values[adamWHyper.epsilon] = hyper.epsilon
    values[adamWHyper.biasCorrection1] = 1 - hyper.beta1 ** hyper.step
    values[adamWHyper.biasCorrection2] = 1 - hyper.beta2 ** hyper.step
    values[adamWHyper.maxGradNorm] = hyper.maxGradNorm
    update.f32('groupHyper').set([1, hyper.weightDecay])
    await update.run({})
    this.normsAreStale = true
    return { gradNorm: update.f32('gradNorm')[0]! }
  }

  async score(batch: MicroBatch, options: { model?: ScoredModel } = {}): Promise<ScoreResult> {
    const model = options.model ?? 'adapter'
    if (model === 'adapter') {
      this.normsAreStale = true
      await this.refreshNorms()
    }
    const scorer = await this.scorer(model)
    return { values: await scorer.score(batch) }
  }

  flopsPerToken(tokens: number, labelledShare = 1): number {
    const headShare = this.options.objective?.head === 'score' ? 0 : labelledShare
    return trainingFlopsPerToken(this.options.base, [...this.options.adapter.linears.values()], tokens, headShare)
  }

  close(): void {
    this.programs.train.close()
    this.programs.update.close()
    this.programs.norms?.close()
    for (const scorer of this.scorers.values()) void scorer.then((s) => s.close())
    void this.evaluation?.then((program) => program.close())
    for (const buffer of this.buffers) buffer.free()
  }

  private scorer(model: ScoredModel): Promise<Scorer> {
    let scorer = this.scorers.get(model)
    if (!scorer) {
      const { base, adapter, reference, precision, objective } = this.options
      // The forward needs less than the training step, whose workspace is free in between.
      const common = { base, precision, dims: this.dims, workspace: this.workspace }
      const { head = 'logProbs', temperature } = objective ?? {}
      scorer =
        model === 'adapter'
          ? openScorer({ ...common, head, temperature, adapter, leaf: this.leaf })
          : openFrozenScorer({
              ...common,
              head: 'logProbs',
              temperature,
              frozen: model === 'reference' ? (reference ?? null) : null,
            })
      this.scorers.set(model, scorer)
    }
    return scorer
  }

  /** DoRA's norms are constant during a step; they follow the parameters between steps. */
  private async refreshNorms(): Promise<void> {
    if (!this.programs.norms || !this.normsAreStale) return
    await this.programs.norms.run({})
    this.normsAreStale = false
  }

  private fillRandomness(program: BoundProgram, batch: MicroBatch, step: number): void {
    const keys = program.i64(batchLeaves.rowKeys)
    for (let d = 0; d + 1 < batch.cuSeqlens.length; d++) {
      const document = BigInt(batch.documents?.[d] ?? d) << 32n
      for (let i = batch.cuSeqlens[d]!; i < batch.cuSeqlens[d + 1]!; i++)
        keys[i] = document | BigInt(batch.positionIds[i]!)
    }
    program.i64(batchLeaves.seed)[0] = (BigInt(this.options.seed ?? 0) << 32n) | BigInt(step)
  }
}

/** Multiply-adds counted twice of one training step over one document, by token: recomputation does not count. */
export function trainingFlopsPerToken(
  base: LoadedBase,
  linears: readonly LinearAdapter[],
  tokens: number,
  headShare = 1,
): number {
  const { config } = base
  const matrices = base.architecture.linears(config).reduce((n, l) => n + l.inFeatures * l.outFeatures, 0)
  const head = headShare * config.vocabSize * config.hiddenSize
  const attention = tokens * config.numAttentionHeads * config.headDim * config.numHiddenLayers // causal half of 2·2·T·H·Dh
  const sizes = new Map(base.architecture.linears(config).map((l) => [l.path, l.inFeatures + l.outFeatures]))
  const adapter = linears.reduce((n, l) => n + l.rank * (sizes.get(l.path) ?? 0), 0)
  return 2 * (2 * (matrices + head)) + 3 * 2 * attention + 3 * 2 * adapter
}
