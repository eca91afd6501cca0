// Chat templates through @huggingface/jinja (trim_blocks and lstrip_blocks, as transformers), and where in the rendered text
// each assistant message is. The library drops {% generation %}, so spans are found by rendering once more with sentinels: in
// place of the generation tags where the template has them, else around the content, up to and with the end token after it.
import { createHash } from 'node:crypto'
import { Template } from '@huggingface/jinja'
import { messageOf } from './errors.js'
import type { Span } from './tokenizer.js'

export interface ChatMessage {
  role: string
  content?: unknown
  [field: string]: unknown
}

export interface RenderOptions {
  /** End with the opening of an assistant message (for generation). */
  addGenerationPrompt?: boolean
  /** Tool definitions (JSON schema), passed to the template. */
  tools?: unknown
  /** Further variables of the template, for example `date_string` or `enable_thinking`. */
  variables?: Record<string, unknown>
}

/** A rendered conversation: `spans[k]` (UTF-16 positions) is what the assistant says in message `messages[k]`. */
export interface MarkedText {
  text: string
  spans: Span[]
  messages: number[]
}

/** What a template needs to know of the tokenizer. */
export interface TemplateTokens {
  bosToken?: string | undefined
  eosToken?: string | undefined
  specialTokens: readonly string[]
}

// Noncharacters, which no text should hold (Unicode 15, section 23.7); 16 pairs to choose from.
const firstSentinel = 0xfdd0
const sentinelPairs = 16
const generationTag = /(^[ \t]*)?\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}(\n?)/gm

/** Generation tags → expressions that print the sentinels, with the whitespace control of a block. */
function printSentinels(source: string): string {
  return source.replace(generationTag, (_, indent, left, end, right, newline) => {
    const open = left === '-' ? '{{-' : '{{'
    const close = right === '-' ? '-}}' : '}}'
    const before = left === '+' ? (indent ?? '') : '' // lstrip_blocks
    const after = right === '+' ? newline : '' // trim_blocks
    return `${before}${open} ${end ? 'espalier_end' : 'espalier_start'} ${close}${after}`
  })
}

function escapeExpression(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\/-]/g, '\\$&')
}

/** Text between sentinels, or undefined where they are not properly paired. */
function takeSentinels(text: string, start: string, end: string): { text: string; spans: Span[] } | undefined {
  const spans: Span[] = []
  let plain = ''
  let opened = -1
  let cursor = 0
  for (let i = 0; i < text.length; i++) {
    const char = text[i]
    if (char !== start && char !== end) continue
    plain += text.slice(cursor, i)
    cursor = i + 1
    if ((char === start) !== opened < 0) return undefined
    if (char === start) opened = plain.length
    else {
      spans.push([opened, plain.length])
      opened = -1
    }
  }
  return opened < 0 ? { text: plain + text.slice(cursor), spans } : undefined
}

export class ChatTemplate {
  readonly source: string
  /** sha256 of the template's source and the tokens that it sees. */
  readonly hash: string
  /** True where the template itself marks what is trained. */
  readonly hasGenerationTags: boolean
  readonly #plain: Template
  readonly #marked: Template
  readonly #tokens: TemplateTokens
  readonly #endToken: RegExp | undefined

  constructor(source: string, tokens: TemplateTokens) {
    this.source = source
    this.hash = createHash('sha256')
      .update(JSON.stringify([source, tokens.bosToken ?? null, tokens.eosToken ?? null, tokens.specialTokens]))
      .digest('hex')
    const printing = printSentinels(source)
    this.hasGenerationTags = printing !== source
    try {
      this.#plain = new Template(source)
      this.#marked = this.hasGenerationTags ? new Template(printing) : this.#plain
    } catch (error) {
      throw new Error(`the chat template does not parse: ${messageOf(error)}`, { cause: error })
    }
    this.#tokens = tokens
    // What may end a message: any special token but the one that begins a text.
    const ends = new Set(tokens.specialTokens.filter((token) => token !== tokens.bosToken))
    if (tokens.eosToken !== undefined) ends.add(tokens.eosToken)
    const sorted = [...ends].filter(Boolean).sort((a, b) => b.length - a.length)
    if (sorted.length > 0) this.#endToken = new RegExp(`\\s*(?:${sorted.map(escapeExpression).join('|')})`, 'y')
  }

  /** The conversation as text; throws what the template raises. */
  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    return this.#run(this.#plain, messages, options, {})
  }

  /**
   * The conversation with the spans of the assistant's messages. Throws where a span cannot be found: a model must never be
   * trained on tokens that nobody has pointed at.
   */
  renderMarked(messages: readonly ChatMessage[], options: RenderOptions = {}): MarkedText {
    const text = this.render(messages, options)
    const assistant = messages.flatMap((message, index) => (message.role === 'assistant' ? [index] : []))
    const [start, end] = this.#chooseSentinels(text, messages)
    if (this.hasGenerationTags) {
      const marked = this.#run(this.#marked, messages, options, { espalier_start: start, espalier_end: end })
      const found = takeSentinels(marked, start, end)
      if (!found || found.text !== text) {
        throw new Error(
          'the {% generation %} blocks of the chat template cannot be followed; see that they are not nested',
        )
      }
      const matches = found.spans.length === assistant.length
      return { text, spans: found.spans, messages: matches ? assistant : found.spans.map(() => -1) }
    }
    if (assistant.length === 0) return { text, spans: [], messages: [] }
    const found =
      this.#aroundContent(messages, options, text, assistant, start, end, false) ??
      this.#aroundContent(messages, options, text, assistant, start, end, true)
    const spans = found
      ? found.map(([from, to]): Span => [from, this.#withEndToken(text, to)])
      : assistant.map((index) => this.#betweenPrefixes(messages, options, text, index))
    return { text, spans, messages: assistant }
  }

  #run(
    template: Template,
    messages: readonly ChatMessage[],
    options: RenderOptions,
    extra: Record<string, string>,
  ): string {
    try {
      return template.render({
        ...options.variables,
        ...extra,
        messages,
        tools: options.tools ?? null,
        add_generation_prompt: options.addGenerationPrompt ?? false,
        bos_token: this.#tokens.bosToken ?? '',
        eos_token: this.#tokens.eosToken ?? '',
      })
    } catch (error) {
      throw new Error(`the chat template refuses these messages: ${messageOf(error)}`, { cause: error })
    }
  }

  #chooseSentinels(text: string, messages: readonly ChatMessage[]): [start: string, end: string] {
    const isClean = !/[\ufdd0-\ufdef]/.test(text)
    const everything = isClean ? '' : text + JSON.stringify(messages)
    for (let pair = 0; pair < sentinelPairs; pair++) {
      const start = String.fromCharCode(firstSentinel + 2 * pair)
      const end = String.fromCharCode(firstSentinel + 2 * pair + 1)
      if (isClean || !(everything.includes(start) || everything.includes(end))) return [start, end]
    }
    throw new Error('the messages hold all of the noncharacters U+FDD0 to U+FDEF; remove them')
  }

  /** Sentinels around each assistant's content (or around its trimmed middle, for templates that trim). */
  #aroundContent(
    messages: readonly ChatMessage[],
    options: RenderOptions,
    text: string,
    assistant: number[],
    start: string,
    end: string,
    isTrimmed: boolean,
  ): Span[] | undefined {
    const marked = messages.map((message) => {
      if (message.role !== 'assistant' || typeof message.content !== 'string') return message
      const content = message.content
      const from = isTrimmed ? content.length - content.trimStart().length : 0
      const to = isTrimmed ? Math.max(from, content.trimEnd().length) : content.length
      const middle = `${start}${content.slice(from, to)}${end}`
      return { ...message, content: `${content.slice(0, from)}${middle}${content.slice(to)}` }
    })
    let rendered: string
    try {
      rendered = this.#run(this.#plain, marked, options, {})
    } catch {
      return undefined
    }
    const found = takeSentinels(rendered, start, end)
    return found && found.text === text && found.spans.length === assistant.length ? found.spans : undefined
  }

  /** For messages without plain content (tool calls) and templates that rework it: what a message adds to its generation prompt. */
  #betweenPrefixes(messages: readonly ChatMessage[], options: RenderOptions, text: string, index: number): Span {
    const before = this.render(messages.slice(0, index), { ...options, addGenerationPrompt: true })
    const after = this.render(messages.slice(0, index + 1), { ...options, addGenerationPrompt: false })
    const isPrefix = after.startsWith(before) && text.startsWith(after)
    // The last end token of what the message adds closes it.
    const added = isPrefix ? after.trimEnd() : ''
    if (added.length <= before.length || !this.#endsWithEndToken(added)) {
      throw new Error(
        `cannot find what the assistant says in messages[${index}] in the rendered text, so the trained tokens are unknown; ` +
          'put {% generation %} … {% endgeneration %} into the chat template, or give the rows as {inputIds, labels}',
      )
    }
    return [before.length, added.length]
  }

  #endsWithEndToken(text: string): boolean {
    return this.#tokens.specialTokens.some(
      (token) => token !== this.#tokens.bosToken && token !== '' && text.endsWith(token),
    )
  }

  /** The end of the token that closes a message, where one follows its content. */
  #withEndToken(text: string, end: number): number {
    if (!this.#endToken) return end
    this.#endToken.lastIndex = end
    return this.#endToken.test(text) ? this.#endToken.lastIndex : end
  }
}

/** A chat template; throws where its source does not parse. */
export function createChatTemplate(source: string, tokens: TemplateTokens): ChatTemplate {
  return new ChatTemplate(source, tokens)
}
