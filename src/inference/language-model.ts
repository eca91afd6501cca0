// A base with its tokenizer and any number of adapters, by name or path: what `espalier score`, `generate`, `chat` and
// `serve` and programs use. Text, conversations and token ids go in; text, log-probabilities and embeddings come out.
import { basename } from 'node:path'
import {
  type ChatMessage,
  type ChatTemplate,
  createChatTemplate,
  createTokenizer,
  DataError,
  detectRowType,
  ignoreIndex,
  rowTypes,
  type Tokenizer,
} from '../data/index.js'
import { openBase } from '../models/base-directory.js'
import { type FetchProgress, prepareBase } from '../models/fetch.js'
import type { Precision } from '../models/graphs.js'
import type { ImportFormatName } from '../models/import.js'
import { architectureOf } from '../models/index.js'
import { type LoadedBase, loadBase } from '../models/loaded-base.js'
import { loadAdapter } from '../models/peft.js'
import { openRuntime, type Runtime, type RuntimeOptions } from '../runtime/index.js'
import { createConstraint, type ResponseFormat } from './constraint.js'
import { embedSequences } from './embed.js'
import { Engine, type EngineOptions } from './engine.js'
import { createQueue } from './queue.js'
import type { EngineRequest, SamplingOptions, TextEngine } from './request.js'
import { type ScoredRow, scoreRow, scoreRows, type TokenRow } from './score.js'
import { InferenceSession } from './session.js'
import { type Generation, type GenerationStream, streamText } from './text.js'

export interface OpenModelOptions {
  /** A known name, `hf:org/name`, or a path. */
  base: string
  format?: ImportFormatName | undefined
  /** A PEFT folder, used where a call names no adapter. */
  adapter?: string | undefined
  /** Load an adapter of which only part fits. */
  allowPartial?: boolean | undefined
  /** `strict`: fp32 arithmetic and activations. Default `fast`. */
  precision?: Precision | undefined
  runtime?: RuntimeOptions | undefined
  /** Sizes of the engine: sequences, cache, adapters, drafts. */
  engine?: Omit<EngineOptions, 'base' | 'precision'> | undefined
  signal?: AbortSignal | undefined
  onProgress?: ((progress: FetchProgress) => void) | undefined
}

/** A text or a conversation, a text that is continued as it is, or ids. */
export type Prompt =
  | string
  | readonly ChatMessage[]
  | { readonly messages: readonly ChatMessage[]; readonly tools?: readonly unknown[] }
  | { readonly text: string }
  | { readonly ids: ArrayLike<number> }

export interface TextOptions extends SamplingOptions {
  /** Texts that end the generation; they are not returned. */
  readonly stop?: readonly string[]
  /** A loaded adapter; null: the base; absent: the adapter that the model was opened with. */
  readonly adapter?: string | null
  readonly signal?: AbortSignal
  readonly speculate?: boolean
  /** Continue a text as it is; without it, it is a user's message where the base has a chat template. */
  readonly raw?: boolean
  /** What the answer must be. */
  readonly responseFormat?: ResponseFormat
  /** Tool definitions for the chat template. */
  readonly tools?: readonly unknown[]
}

export interface ManyOptions extends TextOptions {
  /**
   * Samples of every prompt. Default 1. Sample k of prompt i draws with the seed `seed + i·n + k`: with one seed for all,
   * prompts of the same length would draw the same noise for the same token, and be no independent samples.
   */
  readonly n?: number
}

export interface IndexedGeneration extends Generation {
  /** Which prompt. */
  readonly index: number
  /** Which of its samples. */
  readonly sample: number
}

export interface RowOptions {
  readonly adapter?: string | null
  readonly signal?: AbortSignal
}

export interface LanguageModelParts {
  readonly name: string
  readonly dir: string
  readonly base: LoadedBase
  readonly tokenizer: Tokenizer
  readonly template?: ChatTemplate | undefined
  readonly engine: TextEngine
  readonly precision?: Precision
  /** Frees what the parts stand on. */
  release?(): Promise<void>
}

/** Rows are scored and embedded in packs of so many tokens: long enough for full speed. */
const PACK_TOKENS = 2048

export class LanguageModel {
  readonly name: string
  readonly dir: string
  readonly runtime: Runtime
  readonly tokenizer: Tokenizer
  readonly template: ChatTemplate | undefined
  readonly engine: TextEngine
  /** What calls without an `adapter` use. */
  defaultAdapter: string | null = null
  readonly #parts: LanguageModelParts
  readonly #folders = new Map<string, { folder: string; allowPartial: boolean }>()
  readonly #sessions = new Map<string | null, Promise<InferenceSession>>()

  /** A model over parts that are open already; `close` closes the engine and calls `release`. */
  constructor(parts: LanguageModelParts) {
    this.name = parts.name
    this.dir = parts.dir
    this.runtime = parts.base.runtime
    this.tokenizer = parts.tokenizer
    this.template = parts.template
    this.engine = parts.engine
    this.#parts = parts
  }

  static async open(options: OpenModelOptions): Promise<LanguageModel> {
    const { signal, onProgress, format, precision = 'fast' } = options
    const found = await prepareBase(options.base, { format, signal, onProgress })
    const opened = openBase(found.dir)
    const tokenizer = createTokenizer(opened.tokenizerJson, opened.tokenizerConfig)
    const template = tokenizer.chatTemplate ? createChatTemplate(tokenizer.chatTemplate, tokenizer) : undefined
    const runtime = await openRuntime(options.runtime ?? {})
    try {
      const base = await loadBase(runtime, opened)
      const engine = await Engine.open({ ...options.engine, base, precision })
      const release = async () => {
        base.close()
        await runtime.close()
      }
      const { name, dir } = found
      const model = new LanguageModel({ name, dir, base, tokenizer, template, engine, precision, release })
      if (options.adapter !== undefined) {
        const loaded = basename(options.adapter) || 'adapter'
        await model.loadAdapter(loaded, options.adapter, { allowPartial: options.allowPartial ?? false })
        model.defaultAdapter = loaded
      }
      return model
    } catch (error) {
      await runtime.close()
      throw error
    }
  }

  /** Loads a PEFT folder under a name that calls may use. */
  async loadAdapter(name: string, folder: string, options: { allowPartial?: boolean } = {}): Promise<void> {
    await this.engine.loadAdapter(name, folder, options)
    this.#folders.set(name, { folder, allowPartial: options.allowPartial ?? false })
  }

  /** @throws while a generation uses it */
  unloadAdapter(name: string): void {
    this.engine.unloadAdapter(name)
    this.#folders.delete(name)
    if (this.defaultAdapter === name) this.defaultAdapter = null
    void this.#sessions.get(name)?.then((session) => session.close())
    this.#sessions.delete(name)
  }

  #adapterOf(asked: string | null | undefined): string | null {
    return asked === undefined ? this.defaultAdapter : asked
  }

  /** What scores and embeds with an adapter; made when it is first needed. */
  #session(asked: string | null | undefined): Promise<InferenceSession> {
    const name = this.#adapterOf(asked)
    const open = async () => {
      const { base, precision = 'fast' } = this.#parts
      if (name === null) return InferenceSession.open({ base, precision })
      const found = this.#folders.get(name)
      if (!found) throw new Error(`no adapter ${JSON.stringify(name)} is loaded: load it with loadAdapter first`)
      const { allowPartial } = found
      const peft = loadAdapter(found.folder, architectureOf(base.config.modelType).linears(base.config), {
        allowPartial,
      })
      const adapter = { shape: { ...peft.layout.adapter, dropout: 0 }, params: peft.values }
      return InferenceSession.open({ base, precision, adapter })
    }
    let session = this.#sessions.get(name)
    if (!session) {
      session = open()
      this.#sessions.set(name, session)
      session.catch(() => this.#sessions.delete(name))
    }
    return session
  }

  /** Tokens that end an answer: the end of the sequence and every special token. */
  get stopIds(): number[] {
    const { eosId, specialIds } = this.tokenizer
    return [...new Set([...(eosId === undefined ? [] : [eosId]), ...specialIds])]
  }

  /** Ids and scored labels of a row of {text}, {messages} or {inputIds, labels?}. @throws DataError naming the place */
  encodeRow(row: unknown, place: string): { inputIds: number[]; labels: number[] | undefined } {
    const type = rowTypes[detectRowType(row, place)]
    const { inputIds, labels } = type.encode(row, place, {
      tokenizer: this.tokenizer,
      template: this.template,
      assistantTurns: 'all',
      appendEos: false,
    })
    if (inputIds.length === 0) throw new DataError(place, 'has no token to score')
    const isWhole = labels.every((label) => label !== ignoreIndex)
    return { inputIds: Array.from(inputIds), labels: isWhole ? undefined : Array.from(labels) }
  }

  #tokenRow(row: unknown, place: string, maxTokens: number): TokenRow {
    const { inputIds, labels } = this.encodeRow(row, place)
    if (inputIds.length > maxTokens)
      throw new DataError(place, `has ${inputIds.length} tokens; this base takes ${maxTokens}`)
    return { inputIds, ...(labels ? { labels } : {}) }
  }

  /** The log-probability of every token of a row given those before it. */
  async score(row: unknown, options: RowOptions & { place?: string; top?: number } = {}): Promise<ScoredRow> {
    const session = await this.#session(options.adapter)
    const { top, signal } = options
    const tokens = this.#tokenRow(row, options.place ?? 'row', session.maxTokens)
    return scoreRow(session, tokens, { ...(top ? { top } : {}), ...(signal ? { signal } : {}) })
  }

  /** Items in packs of at most `maxTokens` and PACK_TOKENS tokens, a longer one alone. */
  async #inPacks<T, R>(
    items: readonly T[],
    maxTokens: number,
    lengthOf: (item: T) => number,
    use: (pack: T[]) => Promise<R[]>,
  ): Promise<R[]> {
    const results: R[] = []
    for (let from = 0; from < items.length; ) {
      let to = from
      for (let total = 0; to < items.length; to++) {
        total += lengthOf(items[to]!)
        if (to > from && total > Math.min(maxTokens, PACK_TOKENS)) break
      }
      results.push(...(await use(items.slice(from, to))))
      from = to
    }
    return results
  }

  /** Log-probabilities of rows of {text}, {messages}, {prompt, completion} or {inputIds, labels?}, many at a time. */
  async logps(rows: readonly unknown[], options: RowOptions = {}): Promise<ScoredRow[]> {
    const session = await this.#session(options.adapter)
    const encoded = rows.map((row, i) => this.#tokenRow(row, `row ${i + 1}`, session.maxTokens))
    return this.#inPacks(
      encoded,
      session.maxTokens,
      ({ inputIds }) => inputIds.length,
      (pack) => scoreRows(session, pack, options.signal),
    )
  }

  /** One vector of length 1 per text or conversation: the mean of the last hidden states of its tokens. */
  async embed(texts: readonly (string | readonly ChatMessage[])[], options: RowOptions = {}): Promise<Float32Array[]> {
    const session = await this.#session(options.adapter)
    const encoded = texts.map((text, i) => {
      const ids =
        typeof text === 'string'
          ? this.encodePrompt(text, { raw: true })
          : Array.from(this.tokenizer.encode(this.#template().render(text)))
      if (ids.length === 0) throw new DataError(`text ${i + 1}`, 'has no token to embed')
      if (ids.length > session.maxTokens)
        throw new DataError(`text ${i + 1}`, `has ${ids.length} tokens; this base takes ${session.maxTokens}`)
      return ids
    })
    return this.#inPacks(
      encoded,
      session.maxTokens,
      (ids) => ids.length,
      (pack) => embedSequences(session, pack, options.signal),
    )
  }

  #template(): ChatTemplate {
    if (!this.template) throw new Error(`${this.name} has no chat template: give the prompt as plain text`)
    return this.template
  }

  /** Ids of a prompt: a conversation through the template, a text too unless it is raw or the base has no template. */
  encodePrompt(prompt: Prompt, options: { raw?: boolean; tools?: readonly unknown[] } = {}): number[] {
    if (typeof prompt === 'object' && 'ids' in prompt) return Array.from(prompt.ids)
    if (typeof prompt === 'object' && 'text' in prompt) return this.encodePrompt(prompt.text, { raw: true })
    if (typeof prompt === 'object' && 'messages' in prompt) {
      const tools = prompt.tools ?? options.tools
      return this.encodePrompt(prompt.messages, tools ? { tools } : {})
    }
    if (typeof prompt === 'string' && (options.raw || !this.template))
      return [...this.tokenizer.prefixIds, ...this.tokenizer.encode(prompt)]
    const messages = typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt
    const tools = options.tools?.length ? { tools: options.tools } : {}
    return Array.from(this.tokenizer.encode(this.#template().render(messages, { addGenerationPrompt: true, ...tools })))
  }

  /** A request of the engine; what it returns besides must be freed when the sequence is over. */
  async #request(prompt: Prompt, options: TextOptions): Promise<{ request: EngineRequest; release(): void }> {
    const { stop: _, adapter, signal, speculate, raw, responseFormat, tools, ...sampling } = options
    const promptIds = this.encodePrompt(prompt, { ...(raw ? { raw } : {}), ...(tools ? { tools } : {}) })
    const stopIds = [...new Set([...this.stopIds, ...(sampling.stopIds ?? [])])]
    const { vocabSize } = this.#parts.base.config
    const constraint =
      responseFormat && (await createConstraint(this.tokenizer, responseFormat, { vocabSize, stopIds }))
    return {
      request: {
        promptIds,
        sampling: { ...sampling, stopIds, ...(constraint ? { constraint } : {}) },
        adapter: this.#adapterOf(adapter),
        ...(speculate === undefined ? {} : { speculate }),
        ...(signal ? { signal } : {}),
      },
      release: () => constraint?.free(),
    }
  }

  /**
   * Continues a prompt.
   * @example for await (const { text } of model.generate('Why is the sky blue?')) process.stdout.write(text)
   * @example const { text } = await model.generate(messages, { responseFormat: { schema } }).result
   */
  generate(prompt: Prompt, options: TextOptions = {}): GenerationStream {
    const opening = this.#request(prompt, options).then(({ request, release }) => {
      try {
        return { tokens: this.engine.submit(request), promptTokens: request.promptIds.length, release }
      } catch (error) {
        release()
        throw error
      }
    })
    return streamText(this.tokenizer, options.stop, opening)
  }

  /**
   * Continues many prompts, each with options of its own; the streams are in their order. All are handed to the engine
   * together, so that samples of one prompt compute it once.
   */
  generateEach(requests: readonly { readonly prompt: Prompt; readonly options?: TextOptions }[]): GenerationStream[] {
    const submit = async () => {
      const preparing = await Promise.allSettled(
        requests.map(({ prompt, options = {} }) => this.#request(prompt, options)),
      )
      const prepared = preparing.flatMap((made) => (made.status === 'fulfilled' ? [made.value] : []))
      try {
        for (const made of preparing) if (made.status === 'rejected') throw made.reason
        const streams = this.engine.submitMany(prepared.map(({ request }) => request))
        return streams.map((tokens, i) => {
          const { request, release } = prepared[i]!
          return { tokens, promptTokens: request.promptIds.length, release }
        })
      } catch (error) {
        for (const { release } of prepared) release()
        throw error
      }
    }
    const submitted = submit()
    return requests.map(({ options }, i) =>
      streamText(
        this.tokenizer,
        options?.stop,
        submitted.then((all) => all[i]!),
      ),
    )
  }

  /** Continues many prompts in one batch; results come as they finish. Ending the iteration early cancels the rest. */
  async *generateMany(prompts: readonly Prompt[], options: ManyOptions = {}): AsyncGenerator<IndexedGeneration> {
    // One listener for all: a signal takes few.
    const { n = 1, signal, ...rest } = options
    signal?.throwIfAborted()
    const places = prompts.flatMap((_, index) => Array.from({ length: n }, (_, sample) => ({ index, sample })))
    const prepared: { request: EngineRequest; release(): void }[] = []
    try {
      for (const { index, sample } of places) {
        const made = await this.#request(prompts[index]!, { ...rest, seed: (rest.seed ?? 0) + index * n + sample })
        prepared.push(made)
        const { length } = made.request.promptIds
        if (length === 0 || length >= this.engine.maxSequenceTokens)
          throw new DataError(
            `prompt ${index + 1}`,
            `has ${length} tokens; this model takes 1 to ${this.engine.maxSequenceTokens - 1}`,
          )
      }
    } catch (error) {
      for (const { release } of prepared) release()
      throw error
    }
    const streams = this.engine.submitMany(prepared.map(({ request }) => request)).map((tokens, i) => {
      const { request, release } = prepared[i]!
      return streamText(
        this.tokenizer,
        rest.stop,
        Promise.resolve({ tokens, promptTokens: request.promptIds.length, release }),
      )
    })
    const finished = createQueue<IndexedGeneration>()
    let left = streams.length
    for (const [i, { result }] of streams.entries())
      result.then(
        (generation) => {
          finished.push({ ...generation, ...places[i]! })
          if (--left === 0) finished.end()
        },
        (error) => finished.end(error),
      )
    if (left === 0) return
    const onAbort = () => finished.end(signal!.reason)
    signal?.addEventListener('abort', onAbort, { once: true })
    yield* finished.read(() => {
      signal?.removeEventListener('abort', onAbort)
      for (const stream of streams) stream.cancel()
    })
  }

  async close(): Promise<void> {
    await this.engine.close()
    for (const session of this.#sessions.values()) (await session.catch(() => null))?.close()
    await this.#parts.release?.()
  }
}

/** Opens a base by name or path, fetching and importing it where that was not done before. */
export function openModel(options: OpenModelOptions): Promise<LanguageModel> {
  return LanguageModel.open(options)
}
