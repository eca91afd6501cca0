// Prompts for stages that sample: rows of {prompt}, a text or the messages before the answer, in a shuffled order that is a
// pure function of seed and position, so that resuming is setting the position. All are kept in memory: prompts are small.
import { createHash } from 'node:crypto'
import type { ChatTemplate } from './chat-template.js'
import { brief, DataError, messageOf } from './errors.js'
import { permutation } from './random.js'
import type { RowSource } from './row-source.js'
import { parseMessages, parseTools } from './row-types/messages.js'
import { prefixFor, type Row } from './row-types/row-type.js'
import type { Tokenizer } from './tokenizer.js'

export interface EncodedPrompt {
  /** What the model sees before it answers. */
  readonly ids: Int32Array
  /** The same as text. */
  readonly text: string
  /** The row, other columns included. */
  readonly row: Row
  readonly place: string
  /** The number of the row in its source. */
  readonly index: number
}

export interface ReadPromptsOptions {
  readonly source: RowSource
  readonly tokenizer: Tokenizer
  /** Needed by prompts that are messages. */
  readonly template?: ChatTemplate | undefined
  readonly templateVariables?: Record<string, unknown> | undefined
  readonly maxPromptLength: number
  /** Leave longer prompts out (default) or cut their beginning; both are counted. */
  readonly truncation?: 'drop' | 'keepEnd' | undefined
  readonly maxRows?: number | undefined
  readonly signal?: AbortSignal | undefined
}

function encodePrompt(row: Row, place: string, options: ReadPromptsOptions): Pick<EncodedPrompt, 'ids' | 'text'> {
  const { tokenizer, template, templateVariables } = options
  const fail = (problem: string): never => {
    throw new DataError(place, problem)
  }
  const { prompt } = row
  if (typeof prompt === 'string') {
    if (prompt === '') fail('"prompt" is empty; remove the row')
    return { text: prompt, ids: Int32Array.of(...prefixFor(prompt, tokenizer), ...tokenizer.encode(prompt)) }
  }
  if (!Array.isArray(prompt)) fail(`"prompt" must be a text or a list of messages, not ${brief(prompt)}`)
  const messages = parseMessages(prompt, 'prompt', fail)
  if (!template) fail('a prompt of messages needs a chat template and this base has none; set data.chatTemplate')
  const tools = parseTools(row.tools, fail)
  const variables = templateVariables ? { variables: templateVariables } : {}
  try {
    const text = template!.render(messages, { addGenerationPrompt: true, tools, ...variables })
    return { text, ids: Int32Array.from(tokenizer.encode(text)) }
  } catch (error) {
    throw new DataError(place, messageOf(error), { cause: error })
  }
}

export interface PromptSet {
  prompts: EncodedPrompt[]
  /** Prompts longer than `maxPromptLength`, left out or cut. */
  tooLong: number
  /** Of the tokens of all prompts. */
  hash: string
}

/** All prompts of a source. @throws DataError for a row without a usable prompt, and where none is short enough */
export async function readPrompts(options: ReadPromptsOptions): Promise<PromptSet> {
  const { source, tokenizer, maxPromptLength, truncation = 'drop', maxRows = Number.POSITIVE_INFINITY } = options
  const prompts: EncodedPrompt[] = []
  const hash = createHash('sha256').update(tokenizer.hash)
  let tooLong = 0
  let index = -1
  for await (const { row, place } of source.rows()) {
    if (prompts.length >= maxRows) break
    index++
    options.signal?.throwIfAborted()
    if (typeof row !== 'object' || row === null || Array.isArray(row)) {
      throw new DataError(place, 'a row must be an object with "prompt"')
    }
    let encoded = encodePrompt(row as Row, place, options)
    if (encoded.ids.length > maxPromptLength) {
      tooLong++
      if (truncation === 'drop') continue
      const ids = encoded.ids.slice(-maxPromptLength)
      encoded = { ids, text: tokenizer.decode(ids) }
    }
    prompts.push({ ...encoded, row: row as Row, place, index })
    // The length keeps apart what is cut elsewhere
    hash.update(Int32Array.of(encoded.ids.length)).update(encoded.ids)
  }
  if (prompts.length === 0) {
    throw new DataError(
      source.name,
      tooLong > 0
        ? `all ${tooLong} prompts are longer than maxPromptLength ${maxPromptLength}; raise it, or shorten them`
        : 'holds no rows; give rows with a "prompt"',
    )
  }
  return { prompts, tooLong, hash: hash.digest('hex') }
}

export interface PromptLoaderOptions {
  readonly prompts: readonly EncodedPrompt[]
  /** Of the prompts, for the check on resuming. */
  readonly hash: string
  readonly seed: number
  readonly promptsPerStep: number
  readonly shuffle: boolean
}

/** Steps of prompts, without end: an epoch's last step goes on into the next one. */
export class PromptLoader {
  readonly stepsPerEpoch: number
  readonly fingerprint: string
  readonly #options: PromptLoaderOptions
  #position = 0
  #order: { epoch: number; list: Uint32Array } | undefined

  constructor(options: PromptLoaderOptions) {
    const { prompts, hash, seed, promptsPerStep, shuffle } = options
    this.#options = options
    this.stepsPerEpoch = prompts.length / promptsPerStep
    this.fingerprint = createHash('sha256')
      .update(JSON.stringify([hash, prompts.length, seed, promptsPerStep, shuffle]))
      .digest('hex')
  }

  #at(position: number): EncodedPrompt {
    const { prompts, seed, shuffle } = this.#options
    const epoch = Math.floor(position / prompts.length)
    if (this.#order?.epoch !== epoch) {
      const list = shuffle
        ? permutation(prompts.length, seed, 'prompts', epoch)
        : Uint32Array.from(prompts, (_, i) => i)
      this.#order = { epoch, list }
    }
    return prompts[this.#order.list[position % prompts.length]!]!
  }

  /** The prompts of the next step. */
  next(): EncodedPrompt[] {
    const { promptsPerStep } = this.#options
    const step = Array.from({ length: promptsPerStep }, (_, i) => this.#at(this.#position + i))
    this.#position += promptsPerStep
    return step
  }

  /** Passes over the prompts, fractional. */
  get epoch(): number {
    return this.#position / this.#options.prompts.length
  }

  /** JSON that `setState` continues from. */
  getState(): unknown {
    return { version: 1, position: this.#position, fingerprint: this.fingerprint }
  }

  setState(state: unknown): void {
    const { version, position, fingerprint } = (state ?? {}) as {
      version?: number
      position?: number
      fingerprint?: string
    }
    if (version !== 1 || !Number.isSafeInteger(position) || position! < 0) {
      throw new Error('the state of the prompts is damaged; resume from another checkpoint')
    }
    if (fingerprint !== this.fingerprint) {
      throw new Error(
        'the prompts, or what decides their order (seed, promptsPerStep, shuffle), are not those of the checkpoint; resume with the same ones or start a new run',
      )
    }
    this.#position = position!
  }
}
