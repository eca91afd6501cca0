// A model run forward only (stops 8 to 11): log-probabilities of labels, or the scalars of a score head, for the adapter
// in training, for a frozen one, or for the base alone.
import { compile } from '../compiler/compile.js'
import { type AdapterShape, adapterLeafName, normsLeafName, scorePath } from '../models/adapter-slot.js'
import type { TraceOptions } from '../models/context.js'
import { graphOptions, normsGraph, type Precision, rewardGraph, scoreGraph } from '../models/graphs.js'
import type { LoadedBase } from '../models/loaded-base.js'
import { type BoundProgram, bindProgram, type LeafMemory } from '../runtime/bind.js'
import type { DeviceBuffer } from '../runtime/types.js'
import { type Dims, fillBatch } from './batch-inputs.js'
import type { MicroBatch } from './program.js'

/** An adapter whose values stay: where its parts lie, and the flat values. */
export interface FrozenAdapter {
  readonly shape: AdapterShape
  readonly values: Float32Array
}

export interface ScorerOptions {
  readonly base: LoadedBase
  readonly head: 'logProbs' | 'score'
  /** Logits are divided by it; default 1. */
  readonly temperature?: number | undefined
  /** The most of every dimension. */
  readonly dims: Dims
  readonly precision?: Precision | undefined
  /** Memory of a program that never runs at the same time; used where it is large enough. */
  readonly workspace?: DeviceBuffer | undefined
}

const FLOAT_BYTES = 4

export class Scorer {
  private readonly program: BoundProgram
  private readonly dims: Dims
  private readonly output: 'logps' | 'scores'
  private readonly buffers: readonly DeviceBuffer[]
  /** Bytes beside the base and a workspace that was given. */
  readonly ownedBytes: number

  constructor(program: BoundProgram, options: ScorerOptions, buffers: readonly DeviceBuffer[]) {
    this.program = program
    this.dims = options.dims
    this.output = options.head === 'score' ? 'scores' : 'logps'
    this.buffers = buffers
    this.ownedBytes = program.ownedBytes + buffers.reduce((n, b) => n + b.byteLength, 0)
  }

  /** Of each labelled row, in order [M]. */
  async score(batch: MicroBatch): Promise<Float32Array> {
    const dims = fillBatch(this.program, batch, this.dims)
    await this.program.run({ dims })
    return this.program.f32(this.output).slice(0, dims.M)
  }

  close(): void {
    this.program.close()
    for (const buffer of this.buffers) buffer.free()
  }
}

/** A scorer over adapter memory of somebody else; `adapter` null: the base alone. */
export async function openScorer(
  options: ScorerOptions & { adapter: AdapterShape | null; leaf: (name: string) => LeafMemory | null },
  buffers: readonly DeviceBuffer[] = [],
): Promise<Scorer> {
  const { base, head, adapter, dims, workspace } = options
  const graph = graphOptions(base.runtime.info.kernels, options.precision ?? 'fast')
  const trace = { config: base.config, formats: base.formats, adapter }
  const built =
    head === 'score'
      ? rewardGraph(base.architecture, graph, trace)
      : scoreGraph(base.architecture, graph, trace, options.temperature)
  const compiled = compile(built, { dims })
  const shared = workspace && compiled.workspaceBytes <= workspace.byteLength ? { workspace } : {}
  return new Scorer(await bindProgram(base.runtime, compiled, { leaf: options.leaf, ...shared }), options, buffers)
}

/** A scorer of a frozen adapter, whose values are copied once; null: the base alone. */
export async function openFrozenScorer(options: ScorerOptions & { frozen: FrozenAdapter | null }): Promise<Scorer> {
  const { base, frozen } = options
  if (!frozen) return openScorer({ ...options, adapter: null, leaf: (name) => base.leaf(name) })
  const memory = new Map<string, LeafMemory>()
  const buffers = await frozenMemory(options, frozen, memory)
  const leaf = (name: string) => memory.get(name) ?? base.leaf(name)
  return openScorer({ ...options, adapter: frozen.shape, leaf }, buffers)
}

/** Fills `memory` with the leaves of the adapter, norms of its magnitudes (DoRA) included → their buffers. */
async function frozenMemory(
  { base, precision }: ScorerOptions,
  { shape, values }: FrozenAdapter,
  memory: Map<string, LeafMemory>,
): Promise<DeviceBuffer[]> {
  const { runtime } = base
  const buffer = runtime.allocate(Math.max(64, values.byteLength))
  buffer.bytes.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength))
  const place = (path: string, offset: number) =>
    memory.set(adapterLeafName(path), { buffer, byteOffset: offset * FLOAT_BYTES })
  for (const { path, offset } of shape.linears.values()) place(path, offset)
  if (shape.score) place(scorePath, shape.score.offset)
  const magnitudes = [...shape.linears.values()].filter((l) => l.magnitudeOffset !== undefined)
  if (magnitudes.length === 0) return [buffer]

  const graph = graphOptions(runtime.info.kernels, precision ?? 'fast')
  const trace: TraceOptions = { config: base.config, formats: base.formats, adapter: shape }
  const leaf = (name: string) => memory.get(name) ?? base.leaf(name)
  const norms = await bindProgram(runtime, compile(normsGraph(graph, trace), { dims: {}, cut: 'blocks' }), { leaf })
  await norms.run({})
  const copies = magnitudes.map(({ path }) => {
    const found = norms.memoryOf(normsLeafName(path))
    const copy = runtime.allocate(found.byteLength)
    copy.bytes.set(found.bytes)
    memory.set(normsLeafName(path), { buffer: copy, byteOffset: 0 })
    return copy
  })
  norms.close()
  return [buffer, ...copies]
}
