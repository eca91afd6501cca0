// Completions sampled from the live adapter (stop 8 of the online stages): the engine reads the memory that training
// writes, samples of one prompt share its cache, and a draw depends on seed, step and place alone.

import type { CacheType } from '../../compiler/ops/paged-attention.js'
import type { Tokenizer } from '../../data/index.js'
import { Engine } from '../../inference/engine.js'
import type { FinishReason } from '../../inference/request.js'
import type { AdapterShape } from '../../models/adapter-slot.js'
import type { Precision } from '../../models/graphs.js'
import type { LoadedBase } from '../../models/loaded-base.js'
import type { DeviceBuffer } from '../../runtime/types.js'

export interface SampledCompletion {
  /** Index into the prompts that were given. */
  readonly prompt: number
  readonly promptIds: Int32Array
  /** Sampled tokens, the end token included where it was drawn. */
  readonly completionIds: Int32Array
  /** Log-probability of each token but the end token, at temperature 1, as the engine computed it. */
  readonly sampledLogps: Float32Array
  /** `length`: cut at the most tokens, or at the end of the context. */
  readonly finishReason: FinishReason
  /** Without the end token. */
  readonly text: string
}

export interface RolloutOptions {
  readonly maxCompletionLength: number
  readonly temperature: number
  readonly topK: number
  readonly topP: number
  readonly numGenerations: number
}

export interface RolloutEngineOptions {
  readonly base: LoadedBase
  readonly tokenizer: Tokenizer
  /** The adapter in training and the memory of its flat parameters. */
  readonly adapter: AdapterShape
  readonly memory: DeviceBuffer
  /** Memory that is free while completions are sampled: the cache lies there. */
  readonly workspace: DeviceBuffer
  readonly precision: Precision
  readonly cacheType?: CacheType
  /** Sequences that run at once. */
  readonly maxSequences: number
  readonly maxSequenceTokens: number
}

const policy = 'policy'
const FLOAT_BYTES = 4

/** Mixes run seed, step and sample into a seed of 52 bits. */
function seedOf(seed: number, step: number, sample: number): number {
  let h = (seed ^ 0x9e3779b9) >>> 0
  for (const part of [step, sample]) {
    h = Math.imul(h ^ part, 0x85ebca6b) >>> 0
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35) >>> 0
    h = (h ^ (h >>> 16)) >>> 0
  }
  return h * 2 ** 20 + (sample & 0xfffff)
}

export class RolloutEngine {
  private readonly engine: Engine
  private readonly tokenizer: Tokenizer
  /** The token that ends a completion. */
  readonly endId: number

  private constructor(engine: Engine, tokenizer: Tokenizer, endId: number) {
    this.engine = engine
    this.tokenizer = tokenizer
    this.endId = endId
  }

  /** @throws where the tokenizer names no end token: nothing could end a completion */
  static async open(options: RolloutEngineOptions): Promise<RolloutEngine> {
    const { base, tokenizer, adapter, memory, workspace, precision, maxSequences, maxSequenceTokens } = options
    if (tokenizer.eosId === undefined) {
      throw new Error('the tokenizer of this base names no end token, so no completion would ever end')
    }
    const ranks = [...adapter.linears.values()].map(({ rank }) => rank)
    const engine = await Engine.open({
      base,
      precision,
      ...(options.cacheType ? { cacheType: options.cacheType } : {}),
      maxSequences,
      maxSequenceTokens,
      maxAdapters: 1,
      maxRank: Math.max(...ranks),
      lent: workspace,
      arena: { buffer: memory, reservedFloats: memory.byteLength / FLOAT_BYTES },
      drafts: null, // a batch of samples keeps the processor busy without
    })
    engine.attachAdapter(policy, { ...adapter, dropout: 0 }, 0)
    return new RolloutEngine(engine, tokenizer, tokenizer.eosId)
  }

  /**
   * `numGenerations` completions of every prompt, in the order of the prompts. The same seed, step and weights give the
   * same completions, whatever else runs.
   */
  async sample(
    prompts: readonly Int32Array[],
    options: RolloutOptions & { seed: number; step: number; signal?: AbortSignal },
    onProgress?: (done: number, total: number) => void,
  ): Promise<SampledCompletion[]> {
    this.engine.touchAdapter(policy) // training has written since
    const { numGenerations, seed, step, signal } = options
    const own = new AbortController()
    const onAbort = () => own.abort(signal!.reason)
    signal?.throwIfAborted()
    signal?.addEventListener('abort', onAbort, { once: true })
    const places = prompts.flatMap((promptIds, prompt) =>
      Array.from({ length: numGenerations }, (_, g) => ({ promptIds, prompt, sample: prompt * numGenerations + g })),
    )
    const streams = this.engine.submitMany(
      places.map(({ promptIds, sample }) => ({
        promptIds,
        adapter: policy,
        signal: own.signal,
        sampling: {
          maxNewTokens: options.maxCompletionLength,
          temperature: options.temperature,
          topK: options.topK,
          topP: options.topP,
          seed: seedOf(seed, step, sample),
          stopIds: [this.endId],
        },
      })),
    )
    let done = 0
    try {
      return await Promise.all(
        streams.map(async (stream, i) => {
          const ids: number[] = []
          const logps: number[] = []
          for await (const { id, logp } of stream) {
            ids.push(id)
            logps.push(logp)
          }
          const finishReason = await stream.finished
          onProgress?.(++done, streams.length)
          return {
            prompt: places[i]!.prompt,
            promptIds: places[i]!.promptIds,
            completionIds: Int32Array.from(finishReason === 'stop' ? [...ids, this.endId] : ids),
            sampledLogps: Float32Array.from(logps),
            finishReason,
            text: this.tokenizer.decode(Int32Array.from(ids)),
          }
        }),
      )
    } catch (error) {
      own.abort(error) // one failed: the others stop too
      throw error
    } finally {
      signal?.removeEventListener('abort', onAbort)
    }
  }

  statistics() {
    return this.engine.statistics()
  }

  close(): Promise<void> {
    return this.engine.close()
  }
}
