// The door to @huggingface/tokenizers: tokenizer.json → ids, ids → text, and which tokens overlap given character spans.
// Byte-level BPE (Llama 3, SmolLM2, Qwen, Mistral Nemo ...) takes a short way: the pre-tokenizer's pieces go through a cache of
// their tokens in front of the library's merges. Everything else (SentencePiece-like) goes through the library whole.
import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import * as library from '@huggingface/tokenizers'
import { messageOf } from './errors.js'
import { PieceCache } from './piece-cache.js'

/** Half-open range of UTF-16 positions in a text. */
export type Span = readonly [start: number, end: number]

export interface EncodeOptions {
  /** Treat the text of special tokens as ordinary text (default: it becomes the special token). */
  specialsAsText?: boolean
}

/** Ids with a flag per token: 1 where the token overlaps one of the spans. */
export interface MarkedIds {
  ids: Int32Array
  trained: Uint8Array
}

/** Turns ids into text as they arrive; text that ends inside a character waits for the rest of it. */
export interface DecodeStream {
  push(id: number): string
  end(): string
}

type Json = Record<string, unknown>

// The library's own declarations do not resolve under nodenext (they import without extensions); this is what we use of it.
interface LibraryModel {
  vocab: string[]
  tokens_to_ids: Map<string, number>
  ignore_merges?: boolean
  bpe?(token: string): string[]
  max_length_to_cache?: number
}
interface LibraryTokenizer {
  model: LibraryModel | null
  pre_tokenizer: { tokenizers?: { pre_tokenize_text(text: string, options: object): string[] }[] } | null
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[]; tokens: string[] }
  decode(ids: number[], options: { clean_up_tokenization_spaces: boolean }): string
  token_to_id(token: string): number | undefined
}
const { Tokenizer: LibraryTokenizer, BPE } = library as unknown as {
  Tokenizer: new (json: object, config: object) => LibraryTokenizer
  BPE: new (config: object) => LibraryModel
}

interface AddedTokenJson {
  id: number
  content: string
  special?: boolean
  lstrip?: boolean
  rstrip?: boolean
  single_word?: boolean
  normalized?: boolean
}

// The expression of GPT-2 (openai/gpt-2, src/encoder.py), which ByteLevel applies when `use_regex` is on.
const gpt2Pattern = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
// The same applied between number characters that were split off one by one: a piece ends before a number as at the end.
const gpt2DigitsPattern = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?![^\\s\\p{N}])|\\s+"

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** `bos_token` and its like are a string or an added-token object. */
function tokenContent(value: unknown): string | undefined {
  if (typeof value === 'string') return value
  return isObject(value) && typeof value.content === 'string' ? value.content : undefined
}

/** The library's Digits step splits 0–9 only, Rust's every number character (char::is_numeric = category N). */
function rewritePreTokenizer(step: unknown): unknown {
  if (!isObject(step)) return step
  if (step.type === 'Sequence' && Array.isArray(step.pretokenizers)) {
    return { ...step, pretokenizers: step.pretokenizers.map(rewritePreTokenizer) }
  }
  if (step.type === 'Digits') {
    const pattern = { Regex: step.individual_digits ? '\\p{N}' : '\\p{N}+' }
    return { type: 'Split', pattern, behavior: 'Isolated', invert: false }
  }
  const behavior = typeof step.behavior === 'string' ? step.behavior : 'Isolated'
  if (step.type === 'Split' && !['Isolated', 'Removed', 'isolated', 'removed'].includes(behavior)) {
    throw new Error(`pre-tokenizer Split with behavior ${behavior} is not supported (Isolated and Removed are)`)
  }
  return step
}

function byteToChar(): string[] {
  const table = new Array<string>(256)
  let shifted = 0
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174
    table[byte] = String.fromCharCode(printable ? byte : 256 + shifted++)
  }
  return table
}

const byteChars = byteToChar()
const charBytes = new Map(byteChars.map((char, byte) => [char, byte]))

/** Piece of text → the byte-level alphabet of GPT-2, one character per UTF-8 byte. */
function toByteLevel(piece: string): string {
  let text = ''
  for (const byte of Buffer.from(piece, 'utf8')) text += byteChars[byte]
  return text
}

/** One step of splitting a stretch of text into pieces that lie end to end. */
type Splitter = (text: string) => string[]

function matcher(pattern: string): Splitter {
  const expression = new RegExp(pattern, 'gu')
  return (text) => text.match(expression) ?? []
}

interface ByteLevelPlan {
  splitters: Splitter[]
}

/** How to split text for a byte-level tokenizer; undefined where the short way does not apply. */
function planByteLevel(json: Json, library: LibraryTokenizer, added: AddedTokenJson[]): ByteLevelPlan | undefined {
  const model = isObject(json.model) ? json.model : {}
  const original = isObject(json.pre_tokenizer) ? json.pre_tokenizer : {}
  const steps =
    original.type === 'Sequence' && Array.isArray(original.pretokenizers) ? original.pretokenizers : [original]
  const last: unknown = steps.at(-1)
  if (!(library.model instanceof BPE) || !isObject(last) || last.type !== 'ByteLevel' || last.add_prefix_space)
    return undefined
  if (model.byte_fallback || model.continuing_subword_prefix || model.end_of_word_suffix) return undefined
  const normalizer = isObject(json.normalizer) ? json.normalizer : undefined
  if (normalizer && normalizer.type !== 'NFC') return undefined
  if (added.some((token) => token.lstrip || token.rstrip || token.single_word)) return undefined
  if (normalizer && added.some((token) => token.content.normalize('NFC') !== token.content)) return undefined

  const usesRegex = last.use_regex !== false
  const first = rewritePreTokenizer(steps[0])
  const splitsNumbers =
    isObject(first) && first.type === 'Split' && isObject(first.pattern) && first.pattern.Regex === '\\p{N}'
  if (steps.length === 2 && splitsNumbers && /^isolated$/i.test(String(first.behavior)) && !first.invert && usesRegex) {
    return { splitters: [matcher(gpt2DigitsPattern)] }
  }
  if (steps.length === 1) return { splitters: [usesRegex ? matcher(gpt2Pattern) : (text) => [text]] }
  // The steps before ByteLevel as the library builds them.
  const splitters = (library.pre_tokenizer?.tokenizers ?? [])
    .slice(0, -1)
    .map<Splitter>((step) => (text) => step.pre_tokenize_text(text, {}))
  if (usesRegex) splitters.push(matcher(gpt2Pattern))
  if (steps.some((step) => isObject(step) && /removed/i.test(String(step.behavior)))) return undefined
  return { splitters }
}

function escapeExpression(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\/-]/g, '\\$&')
}

/** Leftmost, then longest, as the trie of the reference does. */
function addedExpression(contents: string[]): RegExp | undefined {
  if (contents.length === 0) return undefined
  const sorted = [...contents].sort((a, b) => b.length - a.length)
  return new RegExp(sorted.map(escapeExpression).join('|'), 'g')
}

/** A tokenizer; create it with `createTokenizer` or `loadTokenizer`. */
export class Tokenizer {
  /** One more than the largest id. */
  readonly vocabSize: number
  readonly bosToken: string | undefined
  readonly bosId: number | undefined
  readonly eosToken: string | undefined
  readonly eosId: number | undefined
  readonly padId: number | undefined
  readonly unkId: number | undefined
  /** Ids of tokens that are marked special, and their texts. */
  readonly specialIds: ReadonlySet<number>
  readonly specialTokens: readonly string[]
  /** What the tokenizer itself puts before a plain text (the BOS of Llama 3), empty for most. */
  readonly prefixIds: readonly number[]
  /** The template of tokenizer_config.json, where there is one. */
  readonly chatTemplate: string | undefined
  /** True where text may be encoded part by part (byte-level: no part begins with a space of its own). */
  readonly isByteLevel: boolean

  readonly #library: LibraryTokenizer
  readonly #model: LibraryModel
  readonly #plan: ByteLevelPlan | undefined
  readonly #normalize: ((text: string) => string) | undefined
  readonly #added: Map<string, number>
  readonly #addedById: Map<number, string>
  readonly #splitAll: RegExp | undefined
  readonly #splitOrdinary: RegExp | undefined
  readonly #cache = new PieceCache()
  readonly #source: string
  #hash: string | undefined
  // Scratch for the tokens of the text at hand.
  #ids = new Int32Array(4096)
  #flags = new Uint8Array(4096)
  #count = 0

  constructor(json: Json, config: Json) {
    if (!isObject(json.model)) throw new Error('tokenizer.json has no "model"')
    const added = (Array.isArray(json.added_tokens) ? json.added_tokens : []) as AddedTokenJson[]
    const rewritten = {
      ...json,
      added_tokens: added,
      pre_tokenizer: rewritePreTokenizer(json.pre_tokenizer ?? null),
      normalizer: json.normalizer ?? null,
      post_processor: json.post_processor ?? null,
      decoder: json.decoder ?? null,
    }
    this.#library = new LibraryTokenizer(rewritten, config)
    if (!this.#library.model) throw new Error('tokenizer.json has a model that @huggingface/tokenizers does not know')
    this.#model = this.#library.model
    this.#plan = planByteLevel(json, this.#library, added)
    this.isByteLevel = this.#plan !== undefined
    if (this.#plan) this.#model.max_length_to_cache = 0 // the cache in front of it serves
    this.#normalize = this.#plan && json.normalizer ? (text) => text.normalize('NFC') : undefined
    this.#added = new Map(added.map((token) => [token.content, token.id]))
    this.#addedById = new Map(added.map((token) => [token.id, token.content]))
    this.#splitAll = addedExpression(added.map((token) => token.content))
    this.#splitOrdinary = addedExpression(added.filter((token) => !token.special).map((token) => token.content))
    this.specialIds = new Set(added.filter((token) => token.special).map((token) => token.id))
    this.specialTokens = added.filter((token) => token.special).map((token) => token.content)
    this.vocabSize = this.#model.vocab.length
    this.bosToken = tokenContent(config.bos_token)
    this.eosToken = tokenContent(config.eos_token)
    this.bosId = this.#idOf(this.bosToken)
    this.eosId = this.#idOf(this.eosToken)
    this.padId = this.#idOf(tokenContent(config.pad_token))
    this.unkId = this.#idOf(tokenContent(isObject(json.model) ? json.model.unk_token : undefined))
    this.chatTemplate = typeof config.chat_template === 'string' ? config.chat_template : undefined
    this.prefixIds = this.#findPrefix(config)
    this.#source = JSON.stringify([json, this.bosToken, this.eosToken, this.prefixIds])
  }

  #idOf(token: string | undefined): number | undefined {
    return token === undefined ? undefined : (this.#added.get(token) ?? this.#library.token_to_id(token))
  }

  /** What the post-processor puts first; `add_bos_token` of the config decides where it speaks. */
  #findPrefix(config: Json): number[] {
    if (config.add_bos_token === false) return []
    if (config.add_bos_token === true && this.bosId !== undefined) return [this.bosId]
    const bare = this.#library.encode('a', { add_special_tokens: false }).ids
    const full = this.#library.encode('a', { add_special_tokens: true }).ids
    const start = full.findIndex((_, i) => bare.every((id, j) => full[i + j] === id))
    return start > 0 ? full.slice(0, start) : []
  }

  /** sha256 over everything that decides how text becomes ids. */
  get hash(): string {
    this.#hash ??= createHash('sha256').update(this.#source).digest('hex')
    return this.#hash
  }

  /** Ids of a text. Nothing is added before or after it (`prefixIds` is the caller's to add). */
  encode(text: string, options: EncodeOptions = {}): Int32Array {
    if (!this.#plan && !options.specialsAsText) return Int32Array.from(this.#libraryIds(text))
    this.#start()
    this.#encodeText(text, [], options)
    return this.#ids.slice(0, this.#count)
  }

  /** Ids of a text with a flag on every token that overlaps one of the ascending, disjoint spans. */
  encodeMarked(text: string, spans: readonly Span[], options: EncodeOptions = {}): MarkedIds {
    this.#start()
    const filled = spans.filter(([from, to]) => from < to)
    this.#encodeText(text, filled, options)
    return { ids: this.#ids.slice(0, this.#count), trained: this.#flags.slice(0, this.#count) }
  }

  /** Text of ids; invalid UTF-8 becomes U+FFFD. */
  decode(ids: ArrayLike<number>, options: { skipSpecials?: boolean } = {}): string {
    const kept: number[] = []
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i]!
      if (!(options.skipSpecials && this.specialIds.has(id))) kept.push(id)
    }
    if (kept.length === 0) return ''
    if (!this.#plan) return this.#library.decode(kept, { clean_up_tokenization_spaces: false })
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(Buffer.concat(kept.map((id) => this.tokenBytes(id))))
  }

  /** For generation: text as soon as its characters are whole. */
  createDecodeStream(options: { skipSpecials?: boolean } = {}): DecodeStream {
    const skips = (id: number): boolean => Boolean(options.skipSpecials) && this.specialIds.has(id)
    if (this.#plan) {
      const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
      return {
        push: (id) => (skips(id) ? '' : decoder.decode(this.tokenBytes(id), { stream: true })),
        end: () => decoder.decode(),
      }
    }
    // Decoding looks at neighbours (leading spaces, byte tokens): decode all that is there and give what is new.
    const ids: number[] = []
    let given = ''
    const flush = (text: string): string => {
      const fresh = text.slice(given.length)
      given = text
      return fresh
    }
    return {
      push: (id) => {
        if (skips(id)) return ''
        ids.push(id)
        const text = this.decode(ids)
        return text.endsWith('\ufffd') ? '' : flush(text)
      },
      end: () => flush(this.decode(ids)),
    }
  }

  /** The bytes that a token stands for (byte-level tokenizers: exact; others: the token's text). */
  tokenBytes(id: number): Uint8Array {
    const content = this.#addedById.get(id)
    if (content !== undefined) return Buffer.from(content, 'utf8')
    const token = this.#model.vocab[id]
    if (token === undefined) return new Uint8Array(0)
    return this.#plan ? fromByteLevel(token) : surfaceBytes(token)
  }

  /** A token as text for people to read; pieces of a character show as U+FFFD. */
  tokenText(id: number): string {
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(this.tokenBytes(id))
  }

  /** Id of a whole token (special or not), undefined where the vocabulary lacks it. */
  tokenToId(token: string): number | undefined {
    return this.#idOf(token)
  }

  #start(): void {
    this.#count = 0
  }

  #push(id: number, isTrained: boolean): void {
    if (this.#count === this.#ids.length) {
      const ids = new Int32Array(this.#count * 2)
      const flags = new Uint8Array(this.#count * 2)
      ids.set(this.#ids)
      flags.set(this.#flags)
      this.#ids = ids
      this.#flags = flags
    }
    this.#ids[this.#count] = id
    this.#flags[this.#count++] = isTrained ? 1 : 0
  }

  #libraryIds(text: string): number[] {
    return text === '' ? [] : this.#library.encode(text, { add_special_tokens: false }).ids
  }

  #encodeText(text: string, spans: readonly Span[], options: EncodeOptions): void {
    if (!this.#plan) {
      this.#encodeThroughLibrary(text, spans, options)
      return
    }
    const expression = options.specialsAsText ? this.#splitOrdinary : this.#splitAll
    let cursor = 0
    if (expression) {
      expression.lastIndex = 0
      for (let match = expression.exec(text); match; match = expression.exec(text)) {
        if (match.index > cursor) this.#encodeSection(text.slice(cursor, match.index), cursor, spans)
        const end = match.index + match[0].length
        const isTrained = spans.some(([from, to]) => from < end && to > match.index)
        this.#push(this.#added.get(match[0])!, isTrained)
        cursor = end
      }
    }
    if (cursor < text.length) this.#encodeSection(cursor === 0 ? text : text.slice(cursor), cursor, spans)
  }

  /** A stretch of ordinary text that begins at `offset` of the whole. */
  #encodeSection(section: string, offset: number, spans: readonly Span[]): void {
    let local: Span[] = []
    const end = offset + section.length
    for (const [from, to] of spans) {
      if (from < end && to > offset) local.push([Math.max(from - offset, 0), Math.min(to, end) - offset])
    }
    if (this.#normalize) {
      const whole = this.#normalize(section)
      if (whole !== section) {
        const normalize = this.#normalize
        local = local.map(([from, to]) => [
          normalize(section.slice(0, from)).length,
          normalize(section.slice(0, to)).length,
        ])
        section = whole
      }
    }
    let pieces = [section]
    const splitters = this.#plan!.splitters
    for (const split of splitters) pieces = pieces.length === 1 ? split(pieces[0]!) : pieces.flatMap(split)

    let position = 0
    let spanIndex = 0
    for (const piece of pieces) {
      const start = position
      position += piece.length
      while (spanIndex < local.length && local[spanIndex]![1] <= start) spanIndex++
      const span = local[spanIndex]
      if (span === undefined || span[0] >= position) this.#pushPiece(piece, false)
      else if (span[0] <= start && span[1] >= position) this.#pushPiece(piece, true)
      else this.#pushStraddling(piece, start, local)
    }
  }

  /** Tokens of a piece that is trained wholly or not at all. */
  #pushPiece(piece: string, isTrained: boolean): void {
    const cache = this.#cache
    const entry = cache.find(piece)
    if (entry >= 0) {
      const at = entry * cache.stride
      const end = at + cache.countOf(entry)
      for (let i = at; i < end; i++) this.#push(cache.ids[i]!, isTrained)
      return
    }
    const triples = this.#mergePiece(piece)
    cache.store(piece, triples)
    for (let i = 0; i < triples.length; i += 3) this.#push(triples[i]!, isTrained)
  }

  /** Tokens of a piece that a span's edge cuts: those that overlap a span by at least one byte are trained. */
  #pushStraddling(piece: string, start: number, spans: readonly Span[]): void {
    const byteSpans: Span[] = []
    for (const [from, to] of spans) {
      const low = Math.max(from - start, 0)
      const high = Math.min(to - start, piece.length)
      if (low < high) byteSpans.push([Buffer.byteLength(piece.slice(0, low)), Buffer.byteLength(piece.slice(0, high))])
    }
    const triples = this.#mergePiece(piece)
    for (let i = 0; i < triples.length; i += 3) {
      const isTrained = byteSpans.some(([low, high]) => triples[i + 1]! < high && triples[i + 2]! > low)
      this.#push(triples[i]!, isTrained)
    }
  }

  /** Tokens of a piece as triples: id, first byte in the piece, byte after the last. */
  #mergePiece(piece: string): number[] {
    const bytes = toByteLevel(piece)
    const model = this.#model
    const ids = model.tokens_to_ids
    const whole = model.ignore_merges ? ids.get(bytes) : undefined
    if (whole !== undefined) return [whole, 0, bytes.length]
    const triples: number[] = []
    let position = 0
    for (const token of model.bpe!(bytes)) {
      // A byte that the vocabulary lacks is dropped where there is no unknown token, as the reference does.
      const id = ids.get(token) ?? this.unkId
      if (id !== undefined) triples.push(id, position, position + token.length)
      position += token.length
    }
    return triples
  }

  /** Any other tokenizer: the library's tokens, laid along the text to find where each one is. */
  #encodeThroughLibrary(text: string, spans: readonly Span[], options: EncodeOptions): void {
    if (options.specialsAsText && this.#splitAll?.test(text)) {
      this.#splitAll.lastIndex = 0
      throw new Error('this tokenizer cannot encode special tokens as plain text; remove them from the text')
    }
    if (text === '') return
    const { ids, tokens } = this.#library.encode(text, { add_special_tokens: false })
    if (spans.length === 0) {
      for (const id of ids) this.#push(id, false)
      return
    }
    const bytes = Buffer.from(text, 'utf8')
    const byteSpans = spans.map(
      ([from, to]): Span => [Buffer.byteLength(text.slice(0, from)), Buffer.byteLength(text.slice(0, to))],
    )
    let position = 0
    for (const [i, id] of ids.entries()) {
      let surface = this.#addedById.has(id) ? Buffer.from(tokens[i]!, 'utf8') : surfaceBytes(tokens[i]!)
      const fits = (): boolean => surface.equals(bytes.subarray(position, position + surface.length))
      if (!fits() && surface[0] === 32) surface = surface.subarray(1) // the space that the tokenizer put first
      if (!fits()) {
        throw new Error(
          `cannot tell which text token ${i} (${JSON.stringify(tokens[i])}) stands for, so the trained tokens are unknown; ` +
            'give the rows as {inputIds, labels}',
        )
      }
      const end = position + surface.length
      this.#push(
        id,
        byteSpans.some(([from, to]) => from < end && to > position),
      )
      position = end
    }
  }
}

function fromByteLevel(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length)
  for (let i = 0; i < token.length; i++) bytes[i] = charBytes.get(token[i]!) ?? 63
  return bytes
}

/** SentencePiece: U+2581 is a space and <0xNN> a byte. */
function surfaceBytes(token: string): Buffer {
  const byte = /^<0x([0-9A-F]{2})>$/.exec(token)
  return byte ? Buffer.from([Number.parseInt(byte[1]!, 16)]) : Buffer.from(token.replaceAll('\u2581', ' '), 'utf8')
}

/** A tokenizer from the parsed contents of tokenizer.json and tokenizer_config.json. */
export function createTokenizer(tokenizerJson: unknown, tokenizerConfig: unknown = {}): Tokenizer {
  if (!isObject(tokenizerJson)) throw new Error('tokenizer.json must hold an object')
  return new Tokenizer(tokenizerJson, isObject(tokenizerConfig) ? tokenizerConfig : {})
}

/** A tokenizer from a base directory or a Hugging Face folder. */
export async function loadTokenizer(directory: string): Promise<Tokenizer> {
  const read = async (name: string, isOptional: boolean): Promise<unknown> => {
    const path = join(directory, name)
    let text: string
    try {
      text = await readFile(path, 'utf8')
    } catch (error) {
      if (isOptional && (error as NodeJS.ErrnoException).code === 'ENOENT') return {}
      throw new Error(`${path}: cannot be read (${messageOf(error)}); import the base again with \`espalier import\``)
    }
    try {
      return JSON.parse(text)
    } catch (error) {
      throw new Error(
        `${path}: is not valid JSON (${messageOf(error)}); import the base again with \`espalier import\``,
      )
    }
  }
  const json = await read('tokenizer.json', false)
  const config = await read('tokenizer_config.json', true)
  try {
    return createTokenizer(json, config)
  } catch (error) {
    throw new Error(`${join(directory, 'tokenizer.json')}: ${messageOf(error)}`, { cause: error })
  }
}
