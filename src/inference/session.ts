// A base, with or without an adapter, ready to score and to continue text. No cache yet: every call computes its whole
// sequences.
import { compile } from '../compiler/compile.js'
import { type AdapterShape, adapterLeafName, normsLeafName } from '../models/adapter-slot.js'
import { batchLeaves, type TraceOptions } from '../models/context.js'
import {
  graphOptions,
  headLeaves,
  hiddenGraph,
  logitsGraph,
  normsGraph,
  type Precision,
  scoreGraph,
} from '../models/graphs.js'
import type { LoadedBase } from '../models/loaded-base.js'
import { type BoundProgram, bindProgram, type LeafMemory } from '../runtime/bind.js'
import type { DeviceBuffer } from '../runtime/types.js'

/** An adapter with its numbers, laid out as one flat buffer. */
export interface LoadedAdapter {
  readonly shape: AdapterShape
  readonly params: Float32Array
}

export interface SessionOptions {
  readonly base: LoadedBase
  readonly adapter?: LoadedAdapter | null
  readonly precision?: Precision
  /** The most tokens of one call. Default: the model's context, at most 8,192. */
  readonly maxTokens?: number
}

/** Documents laid end to end. */
export interface Sequences {
  readonly inputIds: Int32Array // [N]
  readonly positionIds: Int32Array // [N]
  readonly cuSeqlens: Int32Array // [documents + 1]
}

const FLOAT_BYTES = 4
const MAX_TOKENS = 8192
/** Sizes that programs are compiled for grow by this factor, so that few are made. */
const GROWTH = 2
const SMALLEST = 512

const graphs = { score: scoreGraph, logits: logitsGraph, hidden: hiddenGraph } as const

/** Lays sequences end to end, positions from 0 in each. */
export function packSequences(sequences: readonly ArrayLike<number>[]): Sequences {
  const total = sequences.reduce((n, s) => n + s.length, 0)
  const packed = {
    inputIds: new Int32Array(total),
    positionIds: new Int32Array(total),
    cuSeqlens: new Int32Array(sequences.length + 1),
  }
  let at = 0
  sequences.forEach((sequence, d) => {
    packed.inputIds.set(sequence, at)
    for (let i = 0; i < sequence.length; i++) packed.positionIds[at + i] = i
    at += sequence.length
    packed.cuSeqlens[d + 1] = at
  })
  return packed
}

export class InferenceSession {
  readonly base: LoadedBase
  readonly maxTokens: number
  private readonly adapter: LoadedAdapter | null
  private readonly precision: Precision
  private readonly memory = new Map<string, LeafMemory>()
  private readonly owned: DeviceBuffer[] = []
  private norms: BoundProgram | null = null
  private readonly programs = new Map<string, { program: BoundProgram; size: number }>()

  private constructor(options: SessionOptions) {
    this.base = options.base
    this.adapter = options.adapter ?? null
    this.precision = options.precision ?? 'fast'
    this.maxTokens = options.maxTokens ?? Math.min(options.base.config.maxPositionEmbeddings, MAX_TOKENS)
  }

  static async open(options: SessionOptions): Promise<InferenceSession> {
    const session = new InferenceSession(options)
    if (session.adapter) await session.bindAdapter(session.adapter)
    return session
  }

  private trace(): TraceOptions {
    return { config: this.base.config, formats: this.base.formats, adapter: this.adapter?.shape ?? null }
  }

  private async bindAdapter(adapter: LoadedAdapter): Promise<void> {
    const { runtime } = this.base
    const buffer = runtime.allocate(Math.max(64, adapter.params.byteLength))
    this.owned.push(buffer)
    new Float32Array(buffer.bytes.buffer as ArrayBuffer, buffer.bytes.byteOffset, adapter.params.length).set(
      adapter.params,
    )
    const linears = [...adapter.shape.linears.values()]
    for (const linear of linears)
      this.memory.set(adapterLeafName(linear.path), { buffer, byteOffset: linear.offset * FLOAT_BYTES })
    if (linears.every((l) => l.magnitudeOffset === undefined)) return
    const graph = graphOptions(runtime.info.kernels, this.precision)
    this.norms = await bindProgram(runtime, compile(normsGraph(graph, this.trace()), { dims: {} }), { leaf: this.leaf })
    await this.norms.run({})
    for (const { path, magnitudeOffset } of linears)
      if (magnitudeOffset !== undefined)
        this.memory.set(normsLeafName(path), { buffer: this.norms.memoryOf(normsLeafName(path)), byteOffset: 0 })
  }

  private readonly leaf = (name: string): LeafMemory | null => this.memory.get(name) ?? this.base.leaf(name)

  /** The program of one kind that takes at least `tokens`; made for twice the need so that few are ever made. */
  private async program(kind: keyof typeof graphs, tokens: number): Promise<BoundProgram> {
    if (tokens > this.maxTokens)
      throw new Error(
        `${tokens} tokens in one call; this session takes ${this.maxTokens}. Shorten the input or raise maxTokens.`,
      )
    const known = this.programs.get(kind)
    if (known && known.size >= tokens) return known.program
    known?.program.close()
    let size = SMALLEST
    while (size < tokens) size *= GROWTH
    size = Math.min(size, Math.max(this.maxTokens, tokens))
    const { runtime, architecture } = this.base
    const graph = graphOptions(runtime.info.kernels, this.precision)
    const traced = graphs[kind](architecture, graph, this.trace())
    // Logits are asked for a few rows at a time.
    const dims = { N: size, M: size, S: size + 1, R: 16 }
    const program = await bindProgram(runtime, compile(traced, { dims }), { leaf: this.leaf })
    this.programs.set(kind, { program, size })
    return program
  }

  private static fill(program: BoundProgram, sequences: Sequences): void {
    program.i32(batchLeaves.inputIds).set(sequences.inputIds)
    program.i32(batchLeaves.positionIds).set(sequences.positionIds)
    program.i32(batchLeaves.cuSeqlens).set(sequences.cuSeqlens)
  }

  /** Log-probability of token `labels[i]` after position `rows[i]` of the packed sequences. */
  async logps(sequences: Sequences, rows: Int32Array, labels: Int32Array, signal?: AbortSignal): Promise<Float32Array> {
    if (rows.length === 0) return new Float32Array(0)
    // Several answers may be compared behind one row: there can be more labels than tokens.
    const n = sequences.inputIds.length
    const program = await this.program('score', Math.max(n, rows.length))
    InferenceSession.fill(program, sequences)
    program.i32(headLeaves.lossRows).set(rows)
    program.i32(headLeaves.labels).set(labels)
    await program.run({ dims: { N: n, M: rows.length, S: sequences.cuSeqlens.length }, signal })
    return program.f32('logps').slice(0, rows.length)
  }

  /** Logits [rows.length, V] after the given positions; at most 16 rows a call. */
  async logits(sequences: Sequences, rows: Int32Array, signal?: AbortSignal): Promise<Float32Array> {
    const n = sequences.inputIds.length
    const program = await this.program('logits', n)
    InferenceSession.fill(program, sequences)
    program.i32(headLeaves.rows).set(rows)
    await program.run({ dims: { N: n, S: sequences.cuSeqlens.length, R: rows.length }, signal })
    return program.f32('logits').slice(0, rows.length * this.base.config.vocabSize)
  }

  /** Last hidden states [N, D] of the packed sequences. */
  async hidden(sequences: Sequences, signal?: AbortSignal): Promise<Float32Array> {
    const n = sequences.inputIds.length
    const program = await this.program('hidden', n)
    InferenceSession.fill(program, sequences)
    await program.run({ dims: { N: n, S: sequences.cuSeqlens.length }, signal })
    return program.f32('hidden').slice(0, n * this.base.config.hiddenSize)
  }

  close(): void {
    for (const { program } of this.programs.values()) program.close()
    this.norms?.close()
    for (const buffer of this.owned) buffer.free()
  }
}
