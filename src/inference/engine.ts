// The inference engine: requests come and go between steps; a step is one prefill run and one decode run over the paged
// cache, off the event loop. What is decided without a model is in scheduler.ts, what drafts need in drafting.ts.
import { freemem } from 'node:os'
import type { CacheType } from '../compiler/ops/paged-attention.js'
import type { AdapterShape } from '../models/adapter-slot.js'
import type { Precision } from '../models/graphs.js'
import type { LoadedBase } from '../models/loaded-base.js'
import type { DeviceBuffer } from '../runtime/types.js'
import { AdapterStore, type SharedArena } from './adapters.js'
import { type Batch, countGenerated, countTokens, type Drawing, decodeBatch, prefillBatch } from './batch.js'
import { availableBlocks, blocksFor, blockTokens } from './blocks.js'
import { Drafting } from './drafting.js'
import { type DraftSource, type DraftSourceName, draftSources } from './drafts/index.js'
import { blockBytes, type Drawn, Executor, topChoices } from './executor.js'
import type { EngineRequest, EngineStatistics, GeneratedToken, TextEngine, TokenStream } from './request.js'
import { maxLogitBiases, RequestError, resolveSampling } from './sampling.js'
import {
  commitDecode,
  commitFirst,
  commitPrefill,
  createScheduler,
  endSequence,
  enqueue,
  isIdle,
  planStep,
  type Scheduler,
  type Sequence,
} from './scheduler.js'
import { TokenQueue } from './token-stream.js'

export interface EngineOptions {
  readonly base: LoadedBase
  /** Default `fast`. */
  readonly precision?: Precision
  /** How keys and values are stored. Default: bf16, f32 in strict mode and without kernels. */
  readonly cacheType?: CacheType
  /** Memory of the cache. Default: what the sequences may take at most, within a quarter of the free memory. */
  readonly cacheBytes?: number
  /** Blocks of 32 tokens, instead of `cacheBytes`. */
  readonly blocks?: number
  /** Prompt and generated tokens of one sequence. Default: the model's context, at most 8,192. */
  readonly maxSequenceTokens?: number
  /** Sequences that run at once; others wait. Default 64. */
  readonly maxSequences?: number
  /** Adapters that may be loaded at once. Default 8. */
  readonly maxAdapters?: number
  /** Largest rank of an adapter. Default 64. */
  readonly maxRank?: number
  /** Floats of the adapters' memory. Default: `maxAdapters` of rank 16 on every linear. */
  readonly adapterFloats?: number
  /** Adapter memory of somebody else, instead of `adapterFloats`. */
  readonly arena?: SharedArena
  /** Memory of somebody else that is free while requests run, for the cache: whoever writes it must `touchAdapter` before the next. */
  readonly lent?: DeviceBuffer
  /** Prompt tokens of one step. Default 512. */
  readonly prefillTokens?: number
  /** Prompt tokens of a step that decodes too: who reads along waits for them. Default 128. */
  readonly prefillTokensBeside?: number
  /** Where drafts come from; null: no speculation. Default `prompt-lookup`. */
  readonly drafts?: DraftSourceName | DraftSource | null
  /** Draft tokens of one sequence and step. Default 16. */
  readonly maxDraftTokens?: number
  /** `fixed` verifies every draft whole, whether or not it pays: for tests and measurements. Default `measured`. */
  readonly speculation?: 'measured' | 'fixed'
}

const MAX_SEQUENCE_TOKENS = 8192
/** Share of the free memory that the cache takes where nothing is said. */
const CACHE_SHARE = 0.25
const DEFAULT_RANK = 16

/** One request on its way. */
interface Job extends Drawing {
  readonly sequence: Sequence
  readonly stream: TokenQueue
  readonly stopIds: ReadonlySet<number>
  readonly adapter: string | null
  readonly speculates: boolean
  readonly signal: AbortSignal | null
}

const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0)

export class Engine implements TextEngine {
  readonly maxSequenceTokens: number
  readonly base: LoadedBase
  private readonly executor: Executor
  private readonly store: AdapterStore
  private readonly scheduler: Scheduler
  private readonly drafting: Drafting | null
  private readonly jobs = new Map<Sequence, Job>()
  /** Requests by the signal that aborts them: one listener for all that share it. */
  private readonly watched = new Map<AbortSignal, { jobs: Set<Job>; abort(): void }>()
  /** Given up by their readers since the last step. */
  private readonly leaving = new Set<Job>()
  private readonly loading = new Set<Promise<void>>()
  private loop: Promise<void> | null = null
  private state: 'open' | 'draining' | 'closed' = 'open'
  private closing: Promise<void> | null = null
  private readonly counts = { prompt: 0, cached: 0, generated: 0, steps: 0 }

  private constructor(parts: {
    options: EngineOptions
    maxSequenceTokens: number
    executor: Executor
    store: AdapterStore
    scheduler: Scheduler
    drafting: Drafting | null
  }) {
    this.base = parts.options.base
    this.maxSequenceTokens = parts.maxSequenceTokens
    this.executor = parts.executor
    this.store = parts.store
    this.scheduler = parts.scheduler
    this.drafting = parts.drafting
  }

  static async open(options: EngineOptions): Promise<Engine> {
    const { base } = options
    const { config, runtime, architecture } = base
    const precision = options.precision ?? 'fast'
    const cacheType = options.cacheType ?? (precision === 'strict' || !runtime.info.kernels ? 'f32' : 'bf16')
    const maxSequences = options.maxSequences ?? 64
    const prefillTokens = options.prefillTokens ?? 512
    const wanted = options.maxSequenceTokens ?? Math.min(config.maxPositionEmbeddings, MAX_SEQUENCE_TOKENS)
    const blocks = options.blocks ?? defaultBlocks(options, blockBytes(base, cacheType), maxSequences, wanted)
    const maxSequenceTokens = Math.min(wanted, config.maxPositionEmbeddings, blocks * blockTokens)
    const source = options.drafts === undefined ? 'prompt-lookup' : options.drafts
    const maxDraftTokens = options.maxDraftTokens ?? 16
    const decodeRows = source ? Math.max(maxSequences, 1 + maxDraftTokens, 64) : maxSequences
    const linears = architecture.linears(config)
    const maxAdapters = options.maxAdapters ?? 8
    const perAdapter = sum(linears.map(({ inFeatures, outFeatures }) => DEFAULT_RANK * (inFeatures + outFeatures) + 32))
    const store = new AdapterStore({
      base,
      precision,
      maxAdapters,
      arenaFloats: options.adapterFloats ?? maxAdapters * perAdapter + 16,
      maxRank: options.maxRank ?? 64,
      arena: options.arena,
    })
    try {
      const executor = await Executor.open({
        base,
        precision,
        cacheType,
        blocks,
        blocksPerSequence: blocksFor(maxSequenceTokens),
        maxSequences,
        prefillTokens,
        decodeRows,
        editsPerDraw: Math.min(config.vocabSize, maxSequenceTokens + maxLogitBiases),
        slots: store.slots,
        adapterLeaf: store.leaf,
        lent: options.lent,
      })
      const host = {
        numLayers: config.numHiddenLayers,
        openDecoder: (layers: number) => executor.openDecoder(layers),
      }
      const drafts = typeof source === 'string' ? await draftSources[source](host) : source
      const prefillTokensBeside = options.prefillTokensBeside ?? 128
      const scheduler = createScheduler({ blocks, maxSequences, prefillTokens, prefillTokensBeside, decodeRows })
      const drafting =
        drafts &&
        new Drafting(drafts, scheduler, {
          maxTokens: maxDraftTokens,
          isMeasured: options.speculation !== 'fixed',
          move: () => executor.move(scheduler.moves.splice(0)),
        })
      return new Engine({ options, maxSequenceTokens, executor, store, scheduler, drafting })
    } catch (error) {
      store.close()
      throw error
    }
  }

  submit(request: EngineRequest): TokenStream {
    return this.submitMany([request])[0]!
  }

  /** Requests of one prompt and adapter are samples: their prompt is computed once. @throws RequestError for any of them */
  submitMany(requests: readonly EngineRequest[]): TokenStream[] {
    if (this.state !== 'open') throw new RequestError('the engine takes no more requests: it is shutting down')
    const checked = requests.map((request) => this.check(request))
    const groups = new Map<string, number[]>()
    for (const [i, { key }] of checked.entries()) {
      const group = groups.get(key)
      if (group) group.push(i)
      else groups.set(key, [i])
    }
    const streams: TokenStream[] = []
    for (const members of groups.values()) {
      const { promptIds, place } = checked[members[0]!]!
      const live = members.filter((i) => {
        const { signal } = requests[i]!
        if (!signal?.aborted) return true
        const stream = new TokenQueue(() => {})
        stream.fail(signal.reason)
        streams[i] = stream
        return false
      })
      if (live.length === 0) continue
      const sequences = enqueue(this.scheduler, {
        promptIds,
        maxTokens: live.map((i) => checked[i]!.maxTokens),
        slot: place.slot,
        namespace: place.namespace,
      })
      for (const [s, i] of live.entries()) streams[i] = this.start(requests[i]!, checked[i]!.sampling, sequences[s]!)
    }
    this.wake()
    return streams
  }

  private check(request: EngineRequest) {
    const { vocabSize } = this.base.config
    const promptIds = Int32Array.from(request.promptIds)
    if (promptIds.length === 0) throw new RequestError('an empty prompt: give at least one token')
    const wrong = promptIds.findIndex((id) => id < 0 || id >= vocabSize)
    if (wrong >= 0)
      throw new RequestError(`token ${wrong} of the prompt is ${promptIds[wrong]}; ids end below ${vocabSize}`)
    const room = this.maxSequenceTokens - promptIds.length
    if (room <= 0)
      throw new RequestError(
        `the prompt has ${promptIds.length} tokens; prompt and answer together have at most ${this.maxSequenceTokens} here`,
      )
    const { maxNewTokens } = request.sampling ?? {}
    if (maxNewTokens !== undefined && !(Number.isInteger(maxNewTokens) && maxNewTokens > 0))
      throw new RequestError(`maxNewTokens is ${maxNewTokens}; it must be a whole number from 1`)
    const name = request.adapter ?? null
    const place = name === null ? { slot: -1, namespace: 'base' } : this.store.find(name)
    if (!place)
      throw new RequestError(
        `no adapter ${JSON.stringify(name)} is loaded; loaded are: ${this.store.names().join(', ') || '(none)'}`,
      )
    return {
      promptIds,
      place,
      sampling: resolveSampling(request.sampling, vocabSize),
      maxTokens: promptIds.length + Math.min(room, maxNewTokens ?? room),
      key: `${place.namespace} ${promptIds.join(' ')}`,
    }
  }

  private start(request: EngineRequest, sampling: Drawing['sampling'], sequence: Sequence): TokenStream {
    const { signal } = request
    const stream = new TokenQueue(() => this.leave(job))
    const job: Job = {
      sequence,
      stream,
      sampling,
      counts: countTokens(sampling, sequence.tokens),
      stopIds: new Set(request.sampling?.stopIds ?? []),
      adapter: request.adapter ?? null,
      speculates: this.drafting !== null && request.speculate !== false,
      signal: signal ?? null,
    }
    if (signal) this.watch(signal, job)
    this.jobs.set(sequence, job)
    return stream
  }

  private watch(signal: AbortSignal, job: Job): void {
    let watched = this.watched.get(signal)
    if (!watched) {
      const jobs = new Set<Job>()
      const abort = () => {
        for (const aborted of jobs) {
          aborted.stream.fail(signal.reason)
          this.leave(aborted)
        }
      }
      watched = { jobs, abort }
      this.watched.set(signal, watched)
      signal.addEventListener('abort', abort, { once: true })
    }
    watched.jobs.add(job)
  }

  private unwatch(job: Job): void {
    const { signal } = job
    const watched = signal && this.watched.get(signal)
    if (!watched) return
    watched.jobs.delete(job)
    if (watched.jobs.size > 0) return
    signal.removeEventListener('abort', watched.abort)
    this.watched.delete(signal)
  }

  private leave(job: Job): void {
    this.leaving.add(job)
    this.wake()
  }

  /** Starts the loop where it rests; what is submitted in one turn of the event loop starts in one step. */
  private wake(): void {
    this.loop ??= new Promise<void>((resolve) => setImmediate(resolve))
      .then(() => this.runSteps())
      .finally(() => {
        this.loop = null
        // Whoever came while it ended.
        if (this.leaving.size > 0 || !isIdle(this.scheduler)) this.wake()
      })
  }

  private async runSteps(): Promise<void> {
    for (;;) {
      for (const job of this.leaving) this.remove(job)
      this.leaving.clear()
      if (isIdle(this.scheduler)) break
      const planned = new Set<Sequence>()
      try {
        await this.step(planned)
      } catch (error) {
        // A run failed: what took part ends with its error. Without a run it is the engine's own, and everything ends.
        const failed = planned.size > 0 ? [...planned] : [...this.jobs.keys()]
        for (const sequence of failed) {
          const job = this.jobs.get(sequence)
          if (!job) continue
          job.stream.fail(error)
          this.remove(job)
        }
      }
    }
    // Memory of host blocks that ended sequences left.
    this.executor.move(this.scheduler.moves.splice(0))
  }

  /** @param planned filled with the sequences that take part in what is being computed */
  private async step(planned: Set<Sequence>): Promise<void> {
    if (this.drafting) {
      // Whom a draft source fails.
      for (const sequence of this.scheduler.decoding) planned.add(sequence)
      await this.drafting.propose(
        this.scheduler.decoding.map((sequence) => this.jobs.get(sequence)!).filter((job) => job.speculates),
      )
      planned.clear()
    }
    const plan = planStep(this.scheduler)
    for (const { sequence, samples } of plan.prefill) for (const s of [sequence, ...samples]) planned.add(s)
    for (const sequence of plan.decode) planned.add(sequence)
    this.executor.move(plan.moves)
    if (planned.size > 0) this.counts.steps++
    const drawingOf = (sequence: Sequence): Drawing | null => {
      const job = this.jobs.get(sequence)
      return job && !job.stream.isEnded ? job : null
    }
    if (plan.prefill.length > 0) {
      const { batch, drawn } = prefillBatch(plan.prefill, drawingOf)
      const result = await this.executor.run('prefill', batch)
      for (const chunk of plan.prefill) commitPrefill(this.scheduler, chunk)
      for (const [draw, sequence] of drawn.entries()) this.emitFirst(sequence, result, draw)
    }
    const decoding = plan.decode.filter((sequence) => drawingOf(sequence) !== null)
    if (decoding.length > 0) {
      const batch = decodeBatch(decoding, drawingOf)
      const result = await this.executor.run('decode', batch)
      this.drafting?.recordStep(batch.ids.length, result.milliseconds)
      this.emitDecoded(decoding, batch, result)
    }
  }

  private emitFirst(sequence: Sequence, drawn: Drawn, draw: number): void {
    const job = this.jobs.get(sequence)
    if (!job || job.stream.isEnded) return
    this.counts.prompt += sequence.promptLength
    this.counts.cached += sequence.cachedTokens
    job.stream.cachedTokens = sequence.cachedTokens
    commitFirst(sequence, drawn.tokens[draw]!)
    this.emit(job, [this.token(job, drawn, draw)])
  }

  private emitDecoded(sequences: readonly Sequence[], batch: Batch, drawn: Drawn): void {
    let draw = 0
    for (const sequence of sequences) {
      const { drafts } = sequence
      const first = draw
      draw += 1 + drafts.length
      if (batch.draws[first]!.position !== sequence.tokens.length) throw new Error('a batch lost its order')
      const job = this.jobs.get(sequence)
      if (!job || job.stream.isEnded) continue
      let accepted = 0
      while (accepted < drafts.length && drawn.tokens[first + accepted] === drafts[accepted]) accepted++
      if (drafts.length > 0) this.drafting!.recordDraft(sequence, drafts.length, accepted)
      const tokens = Array.from({ length: accepted + 1 }, (_, i) => this.token(job, drawn, first + i))
      commitDecode(
        sequence,
        tokens.map(({ id }) => id),
      )
      this.emit(job, tokens)
    }
  }

  private token({ sampling }: Job, drawn: Drawn, draw: number): GeneratedToken {
    const token = { id: drawn.tokens[draw]!, logp: drawn.logps[draw]! }
    return sampling.topLogps > 0 ? { ...token, top: topChoices(drawn, draw, sampling.topLogps) } : token
  }

  /** Hands out new tokens, which the sequence holds already, up to one that ends it. */
  private emit(job: Job, tokens: readonly GeneratedToken[]): void {
    const { sequence, stream, sampling, counts } = job
    for (const token of tokens) {
      if (job.stopIds.has(token.id)) {
        stream.finish('stop')
        break
      }
      this.counts.generated++
      sampling.constraint?.accept(token.id)
      countGenerated(counts, sampling, token.id)
      stream.push(token)
    }
    if (sequence.tokens.length >= sequence.maxTokens) stream.finish('length')
    if (stream.isEnded) this.remove(job)
  }

  private remove(job: Job): void {
    const { sequence } = job
    if (this.jobs.delete(sequence)) {
      this.unwatch(job)
      this.drafting?.release(sequence)
    }
    endSequence(this.scheduler, sequence)
  }

  statistics(): EngineStatistics {
    const { decoding, prefilling, waiting, swapped, pool, preemptions } = this.scheduler
    const withFollowers = (list: readonly Sequence[]) => sum(list.map(({ followers }) => 1 + followers.length))
    const { prompt, cached, generated, steps } = this.counts
    return {
      running: decoding.length + withFollowers(prefilling),
      waiting: withFollowers(waiting),
      swapped: withFollowers(swapped),
      blocks: { total: pool.size, used: pool.size - availableBlocks(pool), cached: pool.idle.size },
      promptTokens: prompt,
      cachedTokens: cached,
      generatedTokens: generated,
      steps,
      preemptions,
      drafts: { proposed: 0, accepted: 0, ...this.drafting?.counts },
    }
  }

  async loadAdapter(name: string, folder: string, options: { readonly allowPartial?: boolean } = {}): Promise<void> {
    if (this.state === 'closed') throw new Error('the engine was closed')
    const loading = this.store.load(name, folder, options)
    this.loading.add(loading)
    await loading.finally(() => this.loading.delete(loading))
  }

  unloadAdapter(name: string): void {
    const users = [...this.jobs.values()].filter(({ adapter }) => adapter === name).length
    if (users > 0) throw new Error(`${users} sequences use the adapter ${name}: cancel them or wait until they end`)
    this.store.unload(name)
  }

  adapters(): readonly string[] {
    return this.store.names()
  }

  /** An adapter that its owner writes in the shared arena, see AdapterStore.attach. */
  attachAdapter(name: string, shape: AdapterShape, offset: number, factors?: ReadonlyMap<string, number>): void {
    this.store.attach(name, shape, offset, factors)
  }

  /** The owner of a shared arena changed an adapter's values: nothing cached of the old ones is used again. */
  touchAdapter(name: string): void {
    this.store.touch(name)
  }

  async drain(): Promise<void> {
    if (this.state === 'open') this.state = 'draining'
    while (this.loop) await this.loop
  }

  close(): Promise<void> {
    this.closing ??= this.end()
    return this.closing
  }

  private async end(): Promise<void> {
    this.state = 'closed'
    for (const { stream } of this.jobs.values()) stream.cancel()
    while (this.loop) await this.loop
    await Promise.allSettled(this.loading)
    await this.drafting?.close()
    this.executor.close()
    this.store.close()
  }
}

function defaultBlocks(options: EngineOptions, bytes: number, maxSequences: number, maxTokens: number): number {
  const most = maxSequences * blocksFor(maxTokens)
  const room = Math.floor((options.cacheBytes ?? freemem() * CACHE_SHARE) / bytes)
  return Math.max(2, options.cacheBytes === undefined ? Math.min(most, room) : room)
}
