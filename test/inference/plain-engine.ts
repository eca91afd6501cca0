// The oracle of the engine's tests, a TextEngine without a cache: one token of one sequence at a time, round robin, every token computed from its whole
// sequence. Slow and plain; the order of sampling and its random numbers are those of compiler/ops/sample-tokens.ts, in
// double precision, so the two choose the same tokens.

import { createQueue } from '../../src/inference/queue.js'
import type {
  EngineRequest,
  EngineStatistics,
  FinishReason,
  GeneratedToken,
  SamplingOptions,
  TextEngine,
  TokenChoice,
  TokenStream,
} from '../../src/inference/request.js'
import { InferenceSession, type LoadedAdapter, packSequences } from '../../src/inference/session.js'
import type { Precision } from '../../src/models/graphs.js'
import type { LoadedBase } from '../../src/models/loaded-base.js'
import { loadAdapter } from '../../src/models/peft.js'

const WORD = 2 ** 32

/** The step of the hash stated in kernels/ops/dropout.cc. */
function hashStep(key: number, word: number): number {
  let x = ((key ^ word) + 0x9e3779b9) >>> 0
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad) >>> 0
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97) >>> 0
  return (x ^ (x >>> 15)) >>> 0
}

/** Gumbel noise of a token at a position: −log(−log(1 − w)), w = (hash + 0.5) / 2³². */
export function gumbelNoise(seed: number, position: number): (token: number) => number {
  const s = BigInt.asUintN(64, BigInt(Math.trunc(seed)))
  let key = 0
  for (const word of [Number(s & 0xffffffffn), Number(s >> 32n), position, 0]) key = hashStep(key, word)
  return (token) => -Math.log(-Math.log1p(-(hashStep(key, token) + 0.5) / WORD))
}

/** Raw logits → logits after penalties, bias and mask; −∞ for tokens that must not come. */
export function editLogits(
  logits: ArrayLike<number>,
  sequence: { prompt: ArrayLike<number>; generated: readonly number[] },
  options: SamplingOptions,
): Float64Array {
  const { repetitionPenalty = 1, frequencyPenalty = 0, presencePenalty = 0, logitBias } = options
  const edited = Float64Array.from(logits)
  const counts = new Map<number, number>()
  for (const id of sequence.generated) counts.set(id, (counts.get(id) ?? 0) + 1)
  if (repetitionPenalty !== 1)
    for (const id of new Set([...Array.from(sequence.prompt), ...sequence.generated]))
      edited[id] = edited[id]! > 0 ? edited[id]! / repetitionPenalty : edited[id]! * repetitionPenalty
  for (const [id, count] of counts) edited[id] = edited[id]! - frequencyPenalty * count - presencePenalty
  for (const [id, bias] of logitBias ?? []) edited[id] = edited[id]! + bias
  const mask = options.constraint?.allowed()
  if (mask)
    for (let id = 0; id < edited.length; id++)
      if (!((mask[id >>> 5] ?? 0) & (1 << (id & 31)))) edited[id] = Number.NEGATIVE_INFINITY
  return edited
}

/** The smallest z that top-k, top-p and min-p keep; equal ones are all kept. */
export function keptThreshold(z: Float64Array, { topK = 0, topP = 1, minP = 0 }: SamplingOptions): number {
  const sorted = Float64Array.from(z).sort().reverse()
  const top = sorted[0]!
  const kth = topK > 0 && topK < z.length ? sorted[topK - 1]! : Number.NEGATIVE_INFINITY
  const left = sorted.filter((x) => x >= kth && x > Number.NEGATIVE_INFINITY)
  const total = left.reduce((sum, x) => sum + Math.exp(x - top), 0)
  let nucleus = top
  let before = 0
  for (const x of left) {
    if (before >= topP && before > 0) break
    nucleus = x
    before += Math.exp(x - top) / total
  }
  return Math.max(kth, topP < 1 ? nucleus : Number.NEGATIVE_INFINITY, top + Math.log(minP))
}

/** The next token: the likeliest at temperature 0, else the largest of logit / T + noise among those kept. */
export function chooseToken(edited: Float64Array, position: number, options: SamplingOptions): number {
  const { temperature = 0, seed = 0 } = options
  const isGreedy = !(temperature > 0)
  const z = isGreedy ? edited : edited.map((x) => x / temperature)
  const threshold = isGreedy ? Number.NEGATIVE_INFINITY : keptThreshold(z, options)
  const noise = gumbelNoise(seed, position)
  let best = -1
  let bestScore = Number.NEGATIVE_INFINITY
  for (let id = 0; id < z.length; id++) {
    if (z[id]! === Number.NEGATIVE_INFINITY || z[id]! < threshold) continue
    const score = isGreedy ? z[id]! : z[id]! + noise(id)
    if (best >= 0 && score <= bestScore) continue
    best = id
    bestScore = score
  }
  if (best < 0) throw new Error('the constraint allows no token here')
  return best
}

/** log softmax denominators of raw logits. */
function logSumExp(logits: ArrayLike<number>): number {
  let top = Number.NEGATIVE_INFINITY
  for (let i = 0; i < logits.length; i++) top = Math.max(top, logits[i]!)
  let sum = 0
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - top)
  return top + Math.log(sum)
}

function likeliest(logits: ArrayLike<number>, lse: number, count: number): TokenChoice[] {
  const ids = Array.from({ length: logits.length }, (_, id) => id)
  ids.sort((a, b) => logits[b]! - logits[a]! || a - b)
  return ids.slice(0, count).map((id) => ({ id, logp: logits[id]! - lse }))
}

/** One request and its tokens so far. */
class Sequence implements TokenStream {
  readonly request: EngineRequest
  readonly finished: Promise<FinishReason>
  readonly cachedTokens = 0
  readonly generated: number[] = []
  isOver = false
  private readonly queue = createQueue<GeneratedToken>()
  private settle!: { resolve(reason: FinishReason): void; reject(error: unknown): void }
  private readonly onAbort = () => this.fail(this.request.signal!.reason)

  constructor(request: EngineRequest) {
    this.request = request
    this.finished = new Promise((resolve, reject) => {
      this.settle = { resolve, reject }
    })
    this.finished.catch(() => {}) // whoever iterates sees it too
    if (request.signal?.aborted) this.fail(request.signal.reason)
    else request.signal?.addEventListener('abort', this.onAbort, { once: true })
  }

  push(token: GeneratedToken): void {
    this.generated.push(token.id)
    this.queue.push(token)
  }

  end(reason: FinishReason): void {
    if (this.isOver) return
    this.over()
    this.settle.resolve(reason)
    this.queue.end()
  }

  fail(error: unknown): void {
    if (this.isOver) return
    this.over()
    this.settle.reject(error)
    this.queue.end(error)
  }

  cancel(): void {
    this.fail(new DOMException('the request was cancelled', 'AbortError'))
  }

  private over(): void {
    this.isOver = true
    this.request.signal?.removeEventListener('abort', this.onAbort)
  }

  [Symbol.asyncIterator](): AsyncGenerator<GeneratedToken> {
    return this.queue.read(() => this.cancel())
  }
}

export interface PlainEngineOptions {
  readonly base: LoadedBase
  readonly precision?: Precision
  readonly maxSequenceTokens?: number
}

export class PlainEngine implements TextEngine {
  readonly maxSequenceTokens: number
  private readonly options: PlainEngineOptions
  private readonly sessions = new Map<string | null, InferenceSession>()
  private sequences: Sequence[] = []
  private pumping: Promise<void> | null = null
  private isDraining = false
  private readonly counts = { promptTokens: 0, generatedTokens: 0, steps: 0 }

  private constructor(options: PlainEngineOptions, session: InferenceSession) {
    this.options = options
    this.sessions.set(null, session)
    this.maxSequenceTokens = session.maxTokens
  }

  static async open(options: PlainEngineOptions): Promise<PlainEngine> {
    return new PlainEngine(options, await PlainEngine.session(options, null))
  }

  private static session(options: PlainEngineOptions, adapter: LoadedAdapter | null): Promise<InferenceSession> {
    const { base, precision, maxSequenceTokens } = options
    return InferenceSession.open({ base, adapter, precision, maxTokens: maxSequenceTokens })
  }

  submit(request: EngineRequest): TokenStream {
    const { promptIds, adapter } = request
    if (this.isDraining) throw new Error('the engine is closing and takes no more requests')
    if (promptIds.length === 0) throw new Error('an empty prompt: give at least one token')
    if (promptIds.length >= this.maxSequenceTokens)
      throw new Error(`the prompt has ${promptIds.length} tokens; this model takes ${this.maxSequenceTokens}`)
    if (!this.sessions.has(adapter ?? null))
      throw new Error(
        `no adapter ${JSON.stringify(adapter)} is loaded; loaded are: ${this.adapters().join(', ') || '(none)'}`,
      )
    const sequence = new Sequence(request)
    this.counts.promptTokens += promptIds.length
    this.sequences.push(sequence)
    this.pumping ??= this.pump()
    return sequence
  }

  submitMany(requests: readonly EngineRequest[]): TokenStream[] {
    return requests.map((request) => this.submit(request))
  }

  private async pump(): Promise<void> {
    await null // the caller gets its streams first
    while (this.sequences.length > 0) {
      const sequence = this.sequences.shift()!
      if (sequence.isOver) continue
      this.sequences.push(sequence)
      await this.advance(sequence).catch((error) => sequence.fail(error))
    }
    this.pumping = null
  }

  private async advance(sequence: Sequence): Promise<void> {
    const { promptIds, sampling = {}, adapter, signal } = sequence.request
    const ids = [...Array.from(promptIds), ...sequence.generated]
    const room = this.maxSequenceTokens - promptIds.length
    if (sequence.generated.length >= Math.min(sampling.maxNewTokens ?? room, room)) return sequence.end('length')
    const session = this.sessions.get(adapter ?? null)!
    const logits = await session.logits(packSequences([ids]), Int32Array.of(ids.length - 1), signal)
    this.counts.steps++
    if (sequence.isOver) return
    const edited = editLogits(logits, { prompt: promptIds, generated: sequence.generated }, sampling)
    const id = chooseToken(edited, ids.length, sampling)
    if (sampling.stopIds?.includes(id)) return sequence.end('stop')
    sampling.constraint?.accept(id)
    this.counts.generatedTokens++
    const lse = logSumExp(logits)
    const top = sampling.topLogps ? { top: likeliest(logits, lse, sampling.topLogps) } : {}
    sequence.push({ id, logp: logits[id]! - lse, ...top })
    if (sequence.generated.length >= Math.min(sampling.maxNewTokens ?? room, room)) sequence.end('length')
  }

  statistics(): EngineStatistics {
    return {
      ...this.counts,
      running: this.sequences.filter((sequence) => !sequence.isOver).length,
      waiting: 0,
      swapped: 0,
      blocks: { total: 0, used: 0, cached: 0 },
      cachedTokens: 0,
      preemptions: 0,
      drafts: { proposed: 0, accepted: 0 },
    }
  }

  async loadAdapter(name: string, folder: string, options: { allowPartial?: boolean } = {}): Promise<void> {
    if (this.sessions.has(name))
      throw new Error(`an adapter ${JSON.stringify(name)} is loaded already; unload it first`)
    const { architecture, config } = this.options.base
    const peft = loadAdapter(folder, architecture.linears(config), options)
    const shape = { ...peft.layout.adapter, dropout: 0 }
    this.sessions.set(name, await PlainEngine.session(this.options, { shape, params: peft.values }))
  }

  unloadAdapter(name: string): void {
    const session = this.sessions.get(name)
    if (!session) throw new Error(`no adapter ${JSON.stringify(name)} is loaded`)
    if (this.sequences.some((sequence) => !sequence.isOver && sequence.request.adapter === name))
      throw new Error(`the adapter ${JSON.stringify(name)} is in use; cancel its requests or wait for them`)
    session.close()
    this.sessions.delete(name)
  }

  adapters(): readonly string[] {
    return [...this.sessions.keys()].filter((name) => name !== null)
  }

  async drain(): Promise<void> {
    this.isDraining = true
    await this.pumping
  }

  async close(): Promise<void> {
    this.isDraining = true
    for (const sequence of this.sequences) sequence.cancel()
    await this.pumping
    for (const session of this.sessions.values()) session.close()
  }
}
