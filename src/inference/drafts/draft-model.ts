// Drafts from a smaller model with the same vocabulary (speculative decoding, arXiv 2211.17192 and 2302.01318). It has a
// cache of its own; what it wrote for drafts that were not taken is written over.
import type { Precision } from '../../models/graphs.js'
import type { LoadedBase } from '../../models/loaded-base.js'
import type { Batch } from '../batch.js'
import { allocateBlock, availableBlocks, blocksFor, createBlockPool, releaseBlocks } from '../blocks.js'
import { Executor } from '../executor.js'
import type { ComputedSource, Draft, DraftRequest } from './source.js'

export interface DraftModelOptions {
  /** The smaller model; whoever opened it closes it, after the engine. */
  readonly base: LoadedBase
  /** Of the engine that it drafts for. */
  readonly vocabSize: number
  readonly precision?: Precision
  /** Tokens of one sequence; longer ones get no drafts. Default: its context, at most 8,192. */
  readonly maxSequenceTokens?: number
  /** As the engine's. Default 64. */
  readonly maxSequences?: number
  /** Blocks of its cache. Default: 1,024 tokens for every sequence. */
  readonly blocks?: number
}

const MAX_SEQUENCE_TOKENS = 8192
const DEFAULT_TOKENS = 1024
const prefillTokens = 512
/** Tokens that a sequence may lag behind and still be caught up in a decode step: usually two. */
const catchUpTokens = 4

interface Cached {
  blocks: number[]
  /** Tokens whose keys and values lie in the blocks. */
  ids: number[]
  /** Of these, known to be the sequence's. */
  settled: number
}

/** @throws where the vocabularies differ */
export async function createDraftModel(options: DraftModelOptions): Promise<ComputedSource> {
  const { base, vocabSize } = options
  const { config, runtime } = base
  if (config.vocabSize !== vocabSize)
    throw new Error(
      `the draft model has ${config.vocabSize} tokens and the model ${vocabSize}: take one of the same family`,
    )
  const maxSequences = options.maxSequences ?? 64
  const maxTokens = options.maxSequenceTokens ?? Math.min(config.maxPositionEmbeddings, MAX_SEQUENCE_TOKENS)
  const blocks = options.blocks ?? maxSequences * blocksFor(Math.min(maxTokens, DEFAULT_TOKENS))
  const precision = options.precision ?? 'fast'
  const executor = await Executor.open({
    base,
    precision,
    cacheType: precision === 'strict' || !runtime.info.kernels ? 'f32' : 'bf16',
    blocks,
    blocksPerSequence: blocksFor(maxTokens),
    maxSequences,
    prefillTokens,
    decodeRows: maxSequences * catchUpTokens,
    editsPerDraw: 0,
    slots: null,
    adapterLeaf: () => null,
  })
  const pool = createBlockPool(blocks)
  /** The least recently used first. */
  const sequences = new Map<number, Cached>()

  const release = (sequence: number) => {
    releaseBlocks(pool, sequences.get(sequence)?.blocks ?? [])
    sequences.delete(sequence)
  }

  /** The sequence's cache with room for its tokens and the draft, or null where there is none. */
  const cacheOf = ({ sequence, tokens, max }: DraftRequest, inUse: ReadonlySet<number>): Cached | null => {
    const total = tokens.length + max
    if (total > maxTokens || blocksFor(total) > blocks) return null
    const cached = sequences.get(sequence) ?? { blocks: [], ids: [], settled: 0 }
    sequences.delete(sequence)
    sequences.set(sequence, cached)
    const missing = blocksFor(total) - cached.blocks.length
    for (const other of sequences.keys()) {
      if (availableBlocks(pool) >= missing) break
      if (!inUse.has(other)) release(other)
    }
    if (availableBlocks(pool) < missing) return null
    for (let i = 0; i < missing; i++) cached.blocks.push(allocateBlock(pool)!)
    // The last token is always computed: its row draws.
    while (cached.settled < cached.ids.length && cached.ids[cached.settled] === tokens[cached.settled]) cached.settled++
    cached.settled = Math.min(cached.settled, tokens.length - 1)
    cached.ids.length = cached.settled
    return cached
  }

  /** Adds rows for `ids` and draws behind the last one where `request` is given. */
  const addRows = (batch: Batch, cached: Cached, ids: readonly number[], request?: DraftRequest) => {
    for (const id of ids) {
      batch.ids.push(id)
      batch.positions.push(cached.ids.length)
      batch.sequences.push(batch.tables.length)
      batch.slots.push(-1)
      cached.ids.push(id)
    }
    batch.tables.push(cached.blocks)
    if (!request) return
    const { sampling } = request
    batch.draws.push({ row: batch.ids.length - 1, position: cached.ids.length, sampling, edits: [], allowed: null })
  }
  const emptyBatch = (): Batch => ({ ids: [], positions: [], sequences: [], slots: [], tables: [], draws: [] })

  return {
    name: 'draft-model',
    kind: 'computed',
    variants: [1],
    writesCache: false,
    async propose(requests) {
      const inUse = new Set(requests.map(({ sequence }) => sequence))
      // As many as a run takes; the others go without.
      const caches = requests.map((request, i) => (i < maxSequences ? cacheOf(request, inUse) : null))
      for (const [i, { tokens }] of requests.entries()) {
        const cached = caches[i]
        if (!cached) continue
        while (tokens.length - cached.ids.length > catchUpTokens) {
          const batch = emptyBatch()
          const end = Math.min(tokens.length - 1, cached.ids.length + prefillTokens)
          addRows(batch, cached, tokens.slice(cached.ids.length, end))
          await executor.run('prefill', batch)
        }
        cached.settled = cached.ids.length
      }
      const drafts = requests.map((): number[] => [])
      for (;;) {
        const active = requests.flatMap((request, i) => (caches[i] && drafts[i]!.length < request.max ? i : []))
        if (active.length === 0) break
        const batch = emptyBatch()
        for (const i of active) {
          const { tokens } = requests[i]!
          const known = caches[i]!.ids.length
          const ids = known < tokens.length ? tokens.slice(known) : [drafts[i]!.at(-1)!]
          addRows(batch, caches[i]!, ids, requests[i]!)
        }
        const { tokens } = await executor.run('decode', batch)
        for (const [draw, i] of active.entries()) drafts[i]!.push(tokens[draw]!)
      }
      return drafts.map((ids): Draft | null => (ids.length > 0 ? { ids, evidence: 1 } : null))
    },
    release,
    close: () => executor.close(),
  }
}
