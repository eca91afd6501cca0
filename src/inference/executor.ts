// Runs the engine's steps: the programs of the two roles over one paged cache, and the byte moves between blocks and
// host memory. Buffers are made once, for the largest step.

import { compile } from '../compiler/compile.js'
import { bytesOf, type Graph } from '../compiler/graph.js'
import { type CacheType, cacheTensors } from '../compiler/ops/paged-attention.js'
import { MAX_TOP_LOGPS, maskWords, SAMPLING_COLUMNS, samplingColumns } from '../compiler/ops/sample-tokens.js'
import type { ModelConfig } from '../models/config.js'
import { cacheLeafName, type PagedTrace, pagedLeaves } from '../models/context.js'
import { graphOptions, type Precision, pagedGraph } from '../models/graphs.js'
import type { LoadedBase } from '../models/loaded-base.js'
import { type BoundProgram, bindProgram, type LeafMemory } from '../runtime/bind.js'
import type { DeviceBuffer } from '../runtime/types.js'
import type { Batch, Draw } from './batch.js'
import { BorrowedMemory } from './borrowed-memory.js'
import type { PartialDecoder } from './drafts/source.js'
import type { BlockMove } from './swap.js'

export type Role = PagedTrace['role']

export interface ExecutorOptions {
  readonly base: LoadedBase
  readonly precision: Precision
  readonly cacheType: CacheType
  /** Memory that is free while the engine runs, for the cache. */
  readonly lent?: DeviceBuffer | undefined
  readonly blocks: number
  readonly blocksPerSequence: number
  readonly maxSequences: number
  readonly prefillTokens: number
  readonly decodeRows: number
  /** Changed logits of one draw at most. */
  readonly editsPerDraw: number
  readonly slots: PagedTrace['slots']
  /** Memory of the adapters: the arena and the slot tables. */
  adapterLeaf(name: string): LeafMemory | null
}

/** What a run drew, by draw. */
export interface Drawn {
  readonly tokens: Int32Array
  readonly logps: Float32Array
  /** [draws, 20] */
  readonly topIds: Int32Array
  readonly topLogps: Float32Array
  readonly milliseconds: number
}

/** One tensor of one layer's cache: `runs` times all blocks. */
interface CacheBuffer extends LeafMemory {
  readonly runs: number
  readonly blockBytes: number
}

/** Bytes of one block over all layers. */
export function blockBytes({ config, runtime }: LoadedBase, type: CacheType): number {
  return cacheTensors(runtime.info, type, 1, config.numKeyValueHeads, config.headDim).reduce(
    (n, { dtype, shape }) => n + config.numHiddenLayers * bytesOf[dtype] * shape.reduce((a, b) => a * b, 1),
    0,
  )
}

function pagedOf(options: ExecutorOptions, role: Role, config: ModelConfig): Graph {
  const { base, precision, cacheType, blocks, blocksPerSequence, slots } = options
  return pagedGraph(base.architecture, graphOptions(base.runtime.info.kernels, precision), {
    config,
    formats: base.formats,
    paged: { role, cacheType, blocks, blocksPerSequence, slots },
  })
}

export class Executor {
  private readonly options: ExecutorOptions
  private readonly leaf: (name: string) => LeafMemory | null
  private readonly memory: BorrowedMemory
  private readonly cache: readonly CacheBuffer[]
  private readonly blocks: number
  private readonly maskWords: number
  private readonly blocksPerSequence: number
  private readonly hasSlots: boolean
  private readonly programs: Readonly<Record<Role, BoundProgram>>
  private readonly workspace: DeviceBuffer
  private readonly host = new Map<number, Uint8Array>()
  /** Memory of slots that were dropped. */
  private readonly spare: Uint8Array[] = []
  private readonly blockBytes: number

  private constructor(
    options: ExecutorOptions,
    memory: {
      memory: BorrowedMemory
      cache: readonly CacheBuffer[]
      leaf: (name: string) => LeafMemory | null
      workspace: DeviceBuffer
      programs: Record<Role, BoundProgram>
    },
  ) {
    this.options = options
    this.leaf = memory.leaf
    this.memory = memory.memory
    this.cache = memory.cache
    this.workspace = memory.workspace
    this.programs = memory.programs
    this.blocks = options.blocks
    this.blocksPerSequence = options.blocksPerSequence
    this.hasSlots = options.slots !== null
    this.maskWords = maskWords(options.base.config.vocabSize)
    this.blockBytes = blockBytes(options.base, options.cacheType)
  }

  static async open(options: ExecutorOptions): Promise<Executor> {
    const { base, cacheType, blocks } = options
    const { runtime, config } = base
    const compiled = (role: Role, rows: number, draws: number) =>
      compile(pagedOf(options, role, config), {
        dims: { N: rows, S: options.maxSequences, R: draws, E: Math.max(1, draws * options.editsPerDraw), C: draws },
      })
    const graphs = {
      // A prompt of fewer tokens than it has samples draws more often than it has rows.
      prefill: compiled('prefill', options.prefillTokens, options.maxSequences),
      decode: compiled('decode', options.decodeRows, options.decodeRows),
    }
    const leaves = new Map<string, LeafMemory>()
    const memory = new BorrowedMemory(runtime, options.lent)
    const cache: CacheBuffer[] = []
    for (let layer = 0; layer < config.numHiddenLayers; layer++)
      for (const tensor of cacheTensors(runtime.info, cacheType, blocks, config.numKeyValueHeads, config.headDim)) {
        const byteLength = bytesOf[tensor.dtype] * tensor.shape.reduce((a, b) => a * b, 1)
        const place = memory.take(byteLength)
        const runs = tensor.shape.slice(0, tensor.blockAxis).reduce((a, b) => a * b, 1)
        cache.push({ ...place, runs, blockBytes: byteLength / runs / blocks })
        leaves.set(cacheLeafName(layer, tensor.name), place)
      }
    // The two never run at once.
    const workspace = runtime.allocate(Math.max(64, graphs.prefill.workspaceBytes, graphs.decode.workspaceBytes))
    const leaf = (name: string) => leaves.get(name) ?? options.adapterLeaf(name) ?? base.leaf(name)
    const programs = {
      prefill: await bindProgram(runtime, graphs.prefill, { leaf, workspace, hasShortNodes: true }),
      decode: await bindProgram(runtime, graphs.decode, { leaf, workspace, hasShortNodes: true }),
    }
    return new Executor(options, { memory, cache, leaf, workspace, programs })
  }

  /** Moves whole blocks; nothing runs meanwhile. */
  move(moves: readonly BlockMove[]): void {
    for (const move of moves) {
      if (move.kind === 'drop') {
        const bytes = this.host.get(move.slot)
        if (bytes) this.spare.push(bytes)
        this.host.delete(move.slot)
      } else if (move.kind === 'copy') {
        const from = [...this.partsOf(move.from)]
        let i = 0
        for (const part of this.partsOf(move.block)) part.set(from[i++]!)
      } else if (move.kind === 'out') {
        const bytes = this.spare.pop() ?? new Uint8Array(this.blockBytes)
        this.host.set(move.slot, bytes)
        let at = 0
        for (const part of this.partsOf(move.block)) {
          bytes.set(part, at)
          at += part.length
        }
      } else {
        const bytes = this.host.get(move.slot)!
        let at = 0
        for (const part of this.partsOf(move.block)) {
          part.set(bytes.subarray(at, at + part.length))
          at += part.length
        }
      }
    }
    // What a burst of preemptions took goes back to the system.
    if (this.host.size === 0) this.spare.length = 0
  }

  /** Where a block's bytes are. */
  private *partsOf(block: number): Generator<Uint8Array> {
    for (const { buffer, byteOffset, runs, blockBytes } of this.cache)
      for (let run = 0; run < runs; run++) {
        const at = byteOffset + (run * this.blocks + block) * blockBytes
        yield buffer.bytes.subarray(at, at + blockBytes)
      }
  }

  /** Writes the rows' keys and values and draws. What it gives is valid until the next run of the role. */
  run(role: Role, batch: Batch): Promise<Drawn> {
    return this.runProgram(this.programs[role], batch)
  }

  /** A decoder of the first layers of the model, over the same cache and adapters. */
  async openDecoder(layers: number): Promise<PartialDecoder> {
    const { base, maxSequences } = this.options
    const config = { ...base.config, numHiddenLayers: layers }
    const graph = pagedOf(this.options, 'decode', config)
    const dims = { N: maxSequences, S: maxSequences, R: maxSequences, E: 1, C: 1 }
    const program = await bindProgram(base.runtime, compile(graph, { dims }), { leaf: this.leaf, hasShortNodes: true })
    return { run: (batch) => this.runProgram(program, batch), close: () => program.close() }
  }

  private async runProgram(program: BoundProgram, batch: Batch): Promise<Drawn> {
    program.i32(pagedLeaves.inputIds).set(batch.ids)
    program.i32(pagedLeaves.positionIds).set(batch.positions)
    program.i32(pagedLeaves.rowSequence).set(batch.sequences)
    if (this.hasSlots) program.i32(pagedLeaves.rowSlot).set(batch.slots)
    const tables = program.i32(pagedLeaves.blockTables)
    for (const [s, blocks] of batch.tables.entries()) {
      tables.fill(0, s * this.blocksPerSequence, (s + 1) * this.blocksPerSequence)
      tables.set(blocks, s * this.blocksPerSequence)
    }
    // A chunk inside a prompt draws nothing that anybody wants, but a run has at least one draw.
    const draws = Math.max(1, batch.draws.length)
    const extra = fillDraws(program, batch.draws, this.maskWords)
    const started = performance.now()
    await program.run({
      dims: { N: batch.ids.length, S: batch.tables.length, R: draws, E: extra.edits, C: extra.masks },
    })
    const milliseconds = performance.now() - started
    return {
      tokens: program.i32('tokens'),
      logps: program.f32('logps'),
      topIds: program.i32('topIds'),
      topLogps: program.f32('topLogps'),
      milliseconds,
    }
  }

  close(): void {
    this.programs.prefill.close()
    this.programs.decode.close()
    this.workspace.free()
    this.memory.free()
    this.host.clear()
  }
}

/** Sampling options, penalties and masks of the draws → how many edits and masks there are, at least one of each. */
function fillDraws(program: BoundProgram, draws: readonly Draw[], words: number): { edits: number; masks: number } {
  const rows = program.i32(pagedLeaves.sampleRows)
  const sampling = program.f32(pagedLeaves.sampling)
  const seeds = program.i64(pagedLeaves.sampleKeys)
  const positions = program.i32(pagedLeaves.samplePositions)
  const maskRows = program.i32(pagedLeaves.maskRows)
  const allowed = program.i32(pagedLeaves.allowed)
  const editRows = program.i32(pagedLeaves.editRows)
  const editTokens = program.i32(pagedLeaves.editTokens)
  const editCounts = program.f32(pagedLeaves.editCounts)
  const editBias = program.f32(pagedLeaves.editBias)
  let edits = 0
  let masks = 0
  if (draws.length === 0) {
    rows[0] = 0
    sampling.fill(0, 0, SAMPLING_COLUMNS)
    maskRows[0] = -1
  }
  for (const [r, draw] of draws.entries()) {
    rows[r] = draw.row
    for (const [name, column] of Object.entries(samplingColumns))
      sampling[r * SAMPLING_COLUMNS + column] = draw.sampling[name as keyof typeof samplingColumns]
    seeds[r] = BigInt(draw.sampling.seed)
    positions[r] = draw.position
    maskRows[r] = draw.allowed ? masks : -1
    if (draw.allowed) {
      allowed.fill(0, masks * words, (masks + 1) * words)
      allowed.set(draw.allowed.subarray(0, words), masks++ * words)
    }
    for (const { token, count, generated, bias } of draw.edits) {
      editRows[edits] = r
      editTokens[edits] = token
      editCounts[2 * edits] = count
      editCounts[2 * edits + 1] = generated
      editBias[edits] = bias
      edits++
    }
  }
  if (edits === 0) {
    editRows[0] = -1
    editTokens[0] = 0
    editCounts.fill(0, 0, 2)
    editBias[0] = 0
  }
  return { edits: Math.max(1, edits), masks: Math.max(1, masks) }
}

/** Alternatives of one draw, best first. */
export function topChoices(drawn: Drawn, draw: number, count: number): { id: number; logp: number }[] {
  const at = draw * MAX_TOP_LOGPS
  return Array.from({ length: count }, (_, i) => ({ id: drawn.topIds[at + i]!, logp: drawn.topLogps[at + i]! }))
}
