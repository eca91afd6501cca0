// Which rows a step computes: continuous batching over paged blocks, as plain functions over plain data. Oldest first;
// when blocks run out the newest sequence is swapped out whole and later resumes where it was (arXiv 2309.06180 §4.5).
import {
  allocateBlock,
  availableBlocks,
  type BlockPool,
  blocksFor,
  blockTokens,
  chainKeys,
  createBlockPool,
  findBlock,
  isWritable,
  registerBlock,
  releaseBlock,
  releaseBlocks,
  retainBlock,
} from './blocks.js'
import { type BlockMove, createSwapArea, dropSlot, type SwapArea, storeBlock } from './swap.js'

/** `following`: another sequence computes its prompt. */
export type SequenceState = 'waiting' | 'following' | 'prefilling' | 'decoding' | 'swapped' | 'ended'

export interface Sequence {
  /** Rises with the time of arrival: the newest is preempted first. */
  readonly id: number
  /** Prompt and generated tokens. */
  readonly tokens: number[]
  readonly promptLength: number
  /** Tokens that it may reach. */
  readonly maxTokens: number
  /** Adapter slot of its rows; −1: the base. */
  readonly slot: number
  /** Keys of the prompt's full blocks. */
  readonly keys: readonly string[]
  state: SequenceState
  /** Tokens whose keys and values lie in the cache (or in host memory while swapped). */
  computed: number
  blocks: number[]
  /** Slots of host memory while swapped. */
  hostSlots: number[]
  /** Tokens that the next decode step verifies behind the last one. */
  drafts: readonly number[]
  /** Samples of the same prompt that begin where this one's prompt ends. */
  followers: Sequence[]
  /** Prompt tokens that were not computed for it. */
  cachedTokens: number
}

export interface SchedulerOptions {
  readonly blocks: number
  /** Sequences that hold blocks at once. */
  readonly maxSequences: number
  /** Prompt tokens of one step. */
  readonly prefillTokens: number
  /** Prompt tokens of a step that decodes too: who reads along waits for them. Default: `prefillTokens`. */
  readonly prefillTokensBeside?: number
  /** Rows of a decode run: sequences and their drafts. */
  readonly decodeRows: number
}

export interface Scheduler {
  readonly options: SchedulerOptions
  readonly pool: BlockPool
  readonly swap: SwapArea
  nextId: number
  waiting: Sequence[]
  prefilling: Sequence[]
  decoding: Sequence[]
  swapped: Sequence[]
  preemptions: number
  /** Moves of sequences that ended since the last step. */
  moves: BlockMove[]
}

/** Prompt tokens [from, to) of a sequence; `samples` draw their first token from the last of them. */
export interface PrefillChunk {
  readonly sequence: Sequence
  readonly from: number
  readonly to: number
  readonly samples: readonly Sequence[]
}

export interface StepPlan {
  readonly moves: readonly BlockMove[]
  /** Chunks of one adapter slot. */
  readonly prefill: readonly PrefillChunk[]
  /** Each has one row for its last token and one for every draft. */
  readonly decode: readonly Sequence[]
}

export function createScheduler(options: SchedulerOptions): Scheduler {
  return {
    options,
    pool: createBlockPool(options.blocks),
    swap: createSwapArea(),
    nextId: 0,
    waiting: [],
    prefilling: [],
    decoding: [],
    swapped: [],
    preemptions: 0,
    moves: [],
  }
}

export interface NewSequence {
  readonly promptIds: ArrayLike<number>
  /** Tokens that each sample may reach, one entry a sample. */
  readonly maxTokens: readonly number[]
  readonly slot: number
  /** What the values of its blocks depend on beside the tokens. */
  readonly namespace: string
}

/** Queues samples of one prompt, which is computed once. The caller has checked that each fits the pool alone. */
export function enqueue(s: Scheduler, { promptIds, maxTokens, slot, namespace }: NewSequence): Sequence[] {
  const prompt = Array.from(promptIds)
  const keys = chainKeys(prompt, namespace)
  const all = maxTokens.map((limit): Sequence => {
    if (blocksFor(limit) > s.options.blocks) throw new Error(`${limit} tokens never fit ${s.options.blocks} blocks`)
    return {
      id: s.nextId++,
      tokens: [...prompt],
      promptLength: prompt.length,
      maxTokens: limit,
      slot,
      keys,
      state: 'following',
      computed: 0,
      blocks: [],
      hostSlots: [],
      drafts: [],
      followers: [],
      cachedTokens: 0,
    }
  })
  // A group is admitted whole, so it may not be larger than what runs at once.
  for (let at = 0; at < all.length; at += s.options.maxSequences) {
    const [leader, ...followers] = all.slice(at, at + s.options.maxSequences) as [Sequence, ...Sequence[]]
    leader.state = 'waiting'
    leader.followers = followers
    s.waiting.push(leader)
  }
  return all
}

const groupSize = (sequence: Sequence): number => 1 + sequence.followers.length

/** Sequences that hold blocks, or will as soon as their prompt is computed. */
export const runningCount = (s: Scheduler): number =>
  s.decoding.length + s.prefilling.reduce((n, sequence) => n + groupSize(sequence), 0)

const insertById = (list: Sequence[], sequence: Sequence) => {
  let at = list.length
  while (at > 0 && list[at - 1]!.id > sequence.id) at--
  list.splice(at, 0, sequence)
}

const removeFrom = (list: Sequence[], sequence: Sequence) => {
  const at = list.indexOf(sequence)
  if (at >= 0) list.splice(at, 1)
}

/** Plans the next step. Its moves come first, then its runs, then one `commit…` call for everything that it names. */
export function planStep(s: Scheduler): StepPlan {
  const moves = s.moves
  s.moves = []
  const preempted = s.preemptions
  const decode = planDecode(s, moves)
  // Blocks just taken from one sequence are not given to another at once: that would be swapping back and forth.
  if (s.preemptions === preempted) {
    resumeSwapped(s, moves)
    if (s.swapped.length === 0) admitWaiting(s, moves)
  }
  return { moves, prefill: planPrefill(s, decode.length > 0), decode }
}

function planDecode(s: Scheduler, moves: BlockMove[]): Sequence[] {
  const planned: Sequence[] = []
  let extra = Math.max(0, s.options.decodeRows - s.decoding.length)
  for (const sequence of [...s.decoding]) {
    if (sequence.state !== 'decoding') continue
    // k drafts give up to k + 1 tokens.
    const room = Math.min(extra, sequence.maxTokens - sequence.tokens.length - 1)
    if (sequence.drafts.length > room) sequence.drafts = sequence.drafts.slice(0, Math.max(0, room))
    if (!makeRoom(s, sequence, moves)) continue
    extra -= sequence.drafts.length
    planned.push(sequence)
  }
  return planned
}

/** Own blocks for its next rows, taken from newer sequences if need be; false: it was preempted itself. */
function makeRoom(s: Scheduler, sequence: Sequence, moves: BlockMove[]): boolean {
  for (;;) {
    if (reserveRows(s, sequence, 1 + sequence.drafts.length, moves)) return true
    if (sequence.drafts.length > 0) {
      sequence.drafts = []
      continue
    }
    const newest = [s.prefilling.at(-1), s.decoding.at(-1)].reduce((a, b) => (!a || (b && b.id > a.id) ? b : a))!
    preempt(s, newest, moves)
    if (newest === sequence) return false
  }
}

/**
 * Own blocks for the rows of drafts that are yet to be made, without taking any from others; the moves come before the
 * next run.
 */
export function reserveDrafts(s: Scheduler, sequence: Sequence, drafts: number): boolean {
  const last = blocksFor(sequence.computed + 1 + drafts)
  const needed = last - Math.floor(sequence.computed / blockTokens)
  // Every sequence may want a block in this step.
  if (needed + s.decoding.length > availableBlocks(s.pool)) return false
  return reserveRows(s, sequence, 1 + drafts, s.moves)
}

function reserveRows(s: Scheduler, sequence: Sequence, rows: number, moves: BlockMove[]): boolean {
  const last = Math.floor((sequence.computed + rows - 1) / blockTokens)
  for (let index = Math.floor(sequence.computed / blockTokens); index <= last; index++) {
    const shared = sequence.blocks[index]
    if (shared !== undefined && isWritable(s.pool, shared)) continue
    const block = allocateBlock(s.pool, sequence.blocks[index - 1])
    if (block === null) return false
    sequence.blocks[index] = block
    if (shared === undefined) continue
    // Copy on write: another sample goes on from the same block.
    moves.push({ kind: 'copy', block, from: shared })
    releaseBlock(s.pool, shared)
  }
  return true
}

function preempt(s: Scheduler, sequence: Sequence, moves: BlockMove[]): void {
  removeFrom(sequence.state === 'decoding' ? s.decoding : s.prefilling, sequence)
  const filled = sequence.blocks.slice(0, blocksFor(sequence.computed))
  sequence.hostSlots = filled.map((block) => storeBlock(s.swap, block, s.pool.keys[block] ?? null, moves))
  releaseBlocks(s.pool, sequence.blocks)
  sequence.blocks = []
  sequence.drafts = []
  sequence.state = 'swapped'
  insertById(s.swapped, sequence)
  s.preemptions++
}

const isPrompt = (sequence: Sequence): boolean => sequence.computed < sequence.promptLength

function resumeSwapped(s: Scheduler, moves: BlockMove[]): void {
  while (s.swapped.length > 0) {
    const sequence = s.swapped[0]!
    const running = runningCount(s)
    if (running + groupSize(sequence) > s.options.maxSequences) return
    const total = Math.max(sequence.hostSlots.length, isPrompt(sequence) ? blocksFor(sequence.promptLength) : 0)
    // A block that it only began to fill is its own, even where another sequence has filled the same one.
    const full = Math.floor(sequence.computed / blockTokens)
    const found = sequence.hostSlots.map((_, i) => {
      const key = i < full ? sequence.keys[i] : undefined
      return key === undefined ? null : findBlock(s.pool, key)
    })
    const held = found.filter((block) => block !== null && s.pool.references[block]! > 0).length
    // Every sequence that decodes may soon want one more.
    const spare = running === 0 ? 0 : running + 1
    if (total - held + spare > availableBlocks(s.pool)) return
    s.swapped.shift()
    for (const block of found) if (block !== null) retainBlock(s.pool, block)
    const blocks: number[] = []
    for (let i = 0; i < total; i++) {
      const known = found[i] ?? null
      const block = known ?? allocateBlock(s.pool, blocks.at(-1))!
      blocks.push(block)
      const slot = sequence.hostSlots[i]
      if (slot === undefined) continue
      if (known === null) moves.push({ kind: 'in', block, slot })
      dropSlot(s.swap, slot, moves)
    }
    sequence.blocks = blocks
    sequence.hostSlots = []
    registerPrompt(s, sequence)
    sequence.state = isPrompt(sequence) ? 'prefilling' : 'decoding'
    insertById(isPrompt(sequence) ? s.prefilling : s.decoding, sequence)
  }
}

function registerPrompt(s: Scheduler, sequence: Sequence): void {
  const full = Math.min(sequence.keys.length, Math.floor(sequence.computed / blockTokens))
  for (let i = 0; i < full; i++) registerBlock(s.pool, sequence.blocks[i]!, sequence.keys[i]!)
}

function admitWaiting(s: Scheduler, moves: BlockMove[]): void {
  // Blocks that are being computed: who needs one of them next waits for it instead of computing it again.
  const coming = new Set(s.prefilling.flatMap(({ keys, computed }) => keys.slice(Math.floor(computed / blockTokens))))
  for (const sequence of [...s.waiting]) {
    const running = runningCount(s)
    if (running + groupSize(sequence) > s.options.maxSequences) return
    const found: number[] = []
    for (const key of sequence.keys) {
      const block = findBlock(s.pool, key)
      if (block === null) break
      found.push(block)
    }
    const next = sequence.keys[found.length]
    if (next !== undefined && coming.has(next)) continue
    const total = blocksFor(sequence.promptLength)
    const isWhole = found.length * blockTokens === sequence.promptLength
    const held = found.filter((block) => s.pool.references[block]! > 0).length
    let needed = total - held + (isWhole ? 1 : 0)
    if (running === 0 && needed > availableBlocks(s.pool) && isWhole) {
      // It fills the pool: its last block is computed again in place of a copy.
      found.pop()
      needed = total - held
    }
    if (needed + (running === 0 ? 0 : s.decoding.length + 1) > availableBlocks(s.pool)) return
    removeFrom(s.waiting, sequence)
    admit(s, sequence, found, moves)
    for (const key of sequence.keys.slice(Math.floor(sequence.computed / blockTokens))) coming.add(key)
  }
}

function admit(s: Scheduler, sequence: Sequence, found: readonly number[], moves: BlockMove[]): void {
  for (const block of found) retainBlock(s.pool, block)
  const blocks = [...found]
  while (blocks.length < blocksFor(sequence.promptLength)) blocks.push(allocateBlock(s.pool, blocks.at(-1))!)
  sequence.computed = found.length * blockTokens
  if (sequence.computed === sequence.promptLength) {
    // The last token is computed again for what it predicts, in a copy: nobody writes a block that others find.
    const shared = blocks.pop()!
    const block = allocateBlock(s.pool, blocks.at(-1))!
    moves.push({ kind: 'copy', block, from: shared })
    releaseBlock(s.pool, shared)
    blocks.push(block)
    sequence.computed--
  }
  sequence.blocks = blocks
  sequence.cachedTokens = sequence.computed
  for (const follower of sequence.followers) follower.cachedTokens = sequence.promptLength
  sequence.state = 'prefilling'
  insertById(s.prefilling, sequence)
}

function planPrefill(s: Scheduler, isBeside: boolean): PrefillChunk[] {
  const chunks: PrefillChunk[] = []
  const { prefillTokens, prefillTokensBeside = prefillTokens } = s.options
  let left = isBeside ? Math.min(prefillTokens, prefillTokensBeside) : prefillTokens
  const slot = s.prefilling[0]?.slot
  for (const sequence of s.prefilling) {
    if (left <= 0) break
    if (sequence.slot !== slot) continue
    const from = sequence.computed
    const to = Math.min(sequence.promptLength, from + left)
    left -= to - from
    const ends = to === sequence.promptLength
    chunks.push({ sequence, from, to, samples: ends ? [sequence, ...sequence.followers] : [] })
  }
  return chunks
}

/** After a prefill run: its full blocks can be found, and a finished prompt's samples decode. */
export function commitPrefill(s: Scheduler, { sequence, to }: PrefillChunk): void {
  if (sequence.state !== 'prefilling') return
  sequence.computed = to
  registerPrompt(s, sequence)
  if (isPrompt(sequence)) return
  removeFrom(s.prefilling, sequence)
  for (const sample of [sequence, ...sequence.followers]) {
    if (sample !== sequence) {
      for (const block of sequence.blocks) retainBlock(s.pool, block)
      sample.blocks = [...sequence.blocks]
      sample.computed = sequence.computed
    }
    sample.state = 'decoding'
    insertById(s.decoding, sample)
  }
  sequence.followers = []
}

/** Appends a first token, drawn behind the prompt. */
export function commitFirst(sequence: Sequence, id: number): void {
  sequence.tokens.push(id)
}

/** After a decode run: the tokens that hold, the accepted drafts and one more. */
export function commitDecode(sequence: Sequence, ids: readonly number[]): void {
  sequence.computed += ids.length
  sequence.tokens.push(...ids)
  sequence.drafts = []
}

/** Takes a sequence out, whatever it was doing; call it between steps. */
export function endSequence(s: Scheduler, sequence: Sequence): void {
  if (sequence.state === 'ended') return
  const heir = sequence.followers[0]
  if (sequence.state === 'following') {
    for (const leader of [...s.waiting, ...s.prefilling, ...s.swapped]) removeFrom(leader.followers, sequence)
  } else {
    const list = { waiting: s.waiting, prefilling: s.prefilling, decoding: s.decoding, swapped: s.swapped }[
      sequence.state
    ]
    if (heir) {
      // The next sample goes on with the prompt.
      heir.state = sequence.state
      heir.computed = sequence.computed
      heir.blocks = sequence.blocks
      heir.hostSlots = sequence.hostSlots
      heir.followers = sequence.followers.slice(1)
      heir.cachedTokens = sequence.cachedTokens
      list[list.indexOf(sequence)] = heir
      list.sort((a, b) => a.id - b.id)
    } else {
      removeFrom(list, sequence)
      releaseBlocks(s.pool, sequence.blocks)
      for (const slot of sequence.hostSlots) dropSlot(s.swap, slot, s.moves)
    }
  }
  sequence.blocks = []
  sequence.hostSlots = []
  sequence.followers = []
  sequence.drafts = []
  sequence.state = 'ended'
}

/** Whether nothing is left to do. */
export const isIdle = (s: Scheduler): boolean =>
  s.waiting.length + s.prefilling.length + s.decoding.length + s.swapped.length === 0
