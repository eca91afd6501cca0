// A base with its tokenizer, with or without an adapter, by name or path: what `espalier score` and `generate` and
// programs use. Text, conversations and token ids go in; log-probabilities and text come out.
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
import { type FinishReason, type GenerateOptions, generateTokens } from './generate.js'
import { type ScoredRow, scoreRow } from './score.js'
import { InferenceSession } from './session.js'

export interface OpenModelOptions {
  /** A known name, `hf:org/name`, or a path. */
  base: string
  format?: ImportFormatName | undefined
  /** A PEFT folder. */
  adapter?: string | undefined
  /** Load an adapter of which only part fits. */
  allowPartial?: boolean | undefined
  /** `strict`: fp32 arithmetic and activations. Default `fast`. */
  precision?: Precision | undefined
  runtime?: RuntimeOptions | undefined
  signal?: AbortSignal | undefined
  onProgress?: ((progress: FetchProgress) => void) | undefined
}

export interface Generation {
  text: string
  ids: number[]
  finishReason: FinishReason
  promptTokens: number
  seconds: number
}

export class LanguageModel {
  readonly name: string
  readonly dir: string
  readonly runtime: Runtime
  readonly tokenizer: Tokenizer
  readonly template: ChatTemplate | undefined
  readonly #base: LoadedBase
  readonly #session: InferenceSession

  private constructor(parts: {
    name: string
    dir: string
    runtime: Runtime
    tokenizer: Tokenizer
    template: ChatTemplate | undefined
    base: LoadedBase
    session: InferenceSession
  }) {
    this.name = parts.name
    this.dir = parts.dir
    this.runtime = parts.runtime
    this.tokenizer = parts.tokenizer
    this.template = parts.template
    this.#base = parts.base
    this.#session = parts.session
  }

  static async open(options: OpenModelOptions): Promise<LanguageModel> {
    const { signal, onProgress, format } = options
    const found = await prepareBase(options.base, { format, signal, onProgress })
    const opened = openBase(found.dir)
    const linears = architectureOf(opened.config.modelType).linears(opened.config)
    const peft = options.adapter
      ? loadAdapter(options.adapter, linears, { allowPartial: options.allowPartial ?? false })
      : undefined
    const tokenizer = createTokenizer(opened.tokenizerJson, opened.tokenizerConfig)
    const template = tokenizer.chatTemplate ? createChatTemplate(tokenizer.chatTemplate, tokenizer) : undefined
    const runtime = await openRuntime(options.runtime ?? {})
    try {
      const base = await loadBase(runtime, opened)
      const session = await InferenceSession.open({
        base,
        adapter: peft ? { shape: { ...peft.layout.adapter, dropout: 0 }, params: peft.values } : null,
        precision: options.precision ?? 'fast',
      })
      return new LanguageModel({ name: found.name, dir: found.dir, runtime, tokenizer, template, base, session })
    } catch (error) {
      await runtime.close()
      throw error
    }
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

  /** The log-probability of every token of a row given those before it. */
  async score(row: unknown, options: { place?: string; top?: number; signal?: AbortSignal } = {}): Promise<ScoredRow> {
    const place = options.place ?? 'row'
    const { inputIds, labels } = this.encodeRow(row, place)
    if (inputIds.length > this.#session.maxTokens)
      throw new DataError(place, `has ${inputIds.length} tokens; this base takes ${this.#session.maxTokens}`)
    const { top, signal } = options
    return scoreRow(
      this.#session,
      { inputIds, ...(labels ? { labels } : {}) },
      { ...(top ? { top } : {}), ...(signal ? { signal } : {}) },
    )
  }

  /** Ids of a prompt: a conversation through the template, or plain text as it is. */
  encodePrompt(prompt: string | readonly ChatMessage[]): number[] {
    if (typeof prompt === 'string') return [...this.tokenizer.prefixIds, ...this.tokenizer.encode(prompt)]
    if (!this.template) throw new Error(`${this.name} has no chat template: give the prompt as plain text`)
    return Array.from(this.tokenizer.encode(this.template.render([...prompt], { addGenerationPrompt: true })))
  }

  /** Continues a prompt; `onText` gets the text as it comes. */
  async generate(
    prompt: string | readonly ChatMessage[],
    options: GenerateOptions & { onText?: (text: string) => void } = {},
  ): Promise<Generation> {
    const { onText, ...sampling } = options
    const ids = this.encodePrompt(prompt)
    const { eosId, specialIds } = this.tokenizer
    const stopIds = [...new Set([...(eosId === undefined ? [] : [eosId]), ...specialIds, ...(options.stopIds ?? [])])]
    const stream = this.tokenizer.createDecodeStream()
    const generated: number[] = []
    let text = ''
    const add = (part: string) => {
      text += part
      if (part) onText?.(part)
    }
    const started = performance.now()
    const tokens = generateTokens(this.#session, ids, { ...sampling, stopIds })
    let next = await tokens.next()
    for (; !next.done; next = await tokens.next()) {
      generated.push(next.value.id)
      add(stream.push(next.value.id))
    }
    add(stream.end())
    const seconds = (performance.now() - started) / 1000
    return { text, ids: generated, finishReason: next.value, promptTokens: ids.length, seconds }
  }

  async close(): Promise<void> {
    this.#session.close()
    this.#base.close()
    await this.runtime.close()
  }
}

/** Opens a base by name or path, fetching and importing it where that was not done before. */
export function openModel(options: OpenModelOptions): Promise<LanguageModel> {
  return LanguageModel.open(options)
}
