// Constrained output: a JSON schema, any JSON object or a regular expression → which tokens may come next. Grammars are
// compiled once per tokenizer; every sequence has a matcher of its own.
import * as z from 'zod'
import type { Tokenizer } from '../data/index.js'
import { patternInText } from './constraint-patterns.js'
import { schemaForGrammar } from './constraint-schema.js'
import type { TokenConstraint } from './request.js'
import {
  createNativeCompiler,
  type Grammar,
  type NativeCompiler,
  type NativeGrammar,
  type NativeMatcher,
} from './xgrammar.js'

/** What an answer must be: JSON that fits a zod type or a JSON schema ({} for any, {type: 'object'} for any object), or a text that a regular expression matches whole. */
export type ResponseFormat =
  | { readonly schema: z.ZodType | Readonly<Record<string, unknown>> }
  | { readonly regex: string | RegExp }

/** A response format that cannot be followed, as opposed to a failure while following it. */
export class ResponseFormatError extends Error {
  override readonly name = 'ResponseFormatError'
}

const WORD_BITS = 32

// The compiler's characters are any bytes of the right form; these are not UTF-8 (Unicode 15, table 3-7): after a first byte
// the second one of an overlong form, of a surrogate, or above U+10FFFF.
const notAfter = [
  { first: 0xe0, from: 0x80, to: 0x9f },
  { first: 0xed, from: 0xa0, to: 0xbf },
  { first: 0xf0, from: 0x80, to: 0x8f },
  { first: 0xf4, from: 0x90, to: 0xbf },
] as const

const isWrongPair = (first: number, second: number) =>
  notAfter.some((rule) => rule.first === first && second >= rule.from && second <= rule.to)

/** Bytes that occur in UTF-8. */
function mayBeText(bytes: Uint8Array): boolean {
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i]!
    if (byte === 0xc0 || byte === 0xc1 || byte > 0xf4) return false
    if (i > 0 && isWrongPair(bytes[i - 1]!, byte)) return false
  }
  return true
}

/** What a constraint needs to know of the tokens. */
interface Vocabulary {
  readonly bytes: readonly Uint8Array[]
  readonly stopIds: ReadonlySet<number>
  /** By first byte of `notAfter`: tokens that must not follow a text that ends with it. */
  readonly wrongAfter: ReadonlyMap<number, readonly number[]>
}

function vocabularyOf(tokenizer: Tokenizer, vocabSize: number, stopIds: readonly number[]): Vocabulary {
  const none = new Uint8Array(0)
  const bytes = Array.from({ length: vocabSize }, (_, id) => {
    if (tokenizer.specialIds.has(id) || stopIds.includes(id) || id >= tokenizer.vocabSize) return none
    const given = tokenizer.tokenBytes(id)
    return mayBeText(given) ? given : none
  })
  const wrong = (first: number) => bytes.flatMap((b, id) => (b.length > 0 && isWrongPair(first, b[0]!) ? [id] : []))
  return { bytes, stopIds: new Set(stopIds), wrongAfter: new Map(notAfter.map(({ first }) => [first, wrong(first)])) }
}

class GrammarConstraint implements TokenConstraint {
  private readonly grammar: NativeGrammar
  private readonly matcher: NativeMatcher
  private readonly vocabulary: Vocabulary
  private readonly accepted: number[] = []
  private readonly mask: Int32Array
  private isFresh = false

  constructor(grammar: NativeGrammar, vocabulary: Vocabulary) {
    this.grammar = grammar
    this.vocabulary = vocabulary
    this.matcher = grammar.create()
    this.mask = new Int32Array(Math.ceil(vocabulary.bytes.length / WORD_BITS))
  }

  private get isStopped(): boolean {
    return this.accepted.length > 0 && this.vocabulary.stopIds.has(this.accepted.at(-1)!)
  }

  allowed(): Int32Array {
    if (this.isFresh) return this.mask
    this.isFresh = true
    const { mask, vocabulary } = this
    if (this.isStopped) {
      mask.fill(0)
      for (const id of vocabulary.stopIds) mask[id >>> 5]! |= 1 << (id & 31)
      return mask
    }
    const words = this.matcher.GetNextTokenBitmask(vocabulary.bytes.length)
    for (let i = 0; i < mask.length; i++) mask[i] = words.get(i)
    words.delete()
    const last = this.accepted.length > 0 ? vocabulary.bytes[this.accepted.at(-1)!]!.at(-1)! : 0
    for (const id of vocabulary.wrongAfter.get(last) ?? []) mask[id >>> 5]! &= ~(1 << (id & 31))
    return mask
  }

  accept(id: number): void {
    if (this.isStopped) throw new Error(`token ${id} comes after the end of the constrained text`)
    if (!this.matcher.AcceptToken(id, false)) throw new Error(`the constraint does not allow token ${id} here`)
    this.accepted.push(id)
    this.isFresh = false
  }

  rollback(count: number): void {
    if (count <= 0) return
    this.matcher.Rollback(count)
    this.accepted.length -= count
    this.isFresh = false
  }

  fork(): TokenConstraint {
    return new GrammarConstraint(this.grammar, this.vocabulary)
  }

  free(): void {
    this.matcher.delete()
  }
}

/** The JSON schema of a response format, or its expression. */
function grammarOf(format: ResponseFormat): Grammar {
  if ('regex' in format) {
    const { regex } = format
    if (regex instanceof RegExp && /[^gdu]/.test(regex.flags))
      throw new ResponseFormatError(`the flags of ${regex} are not supported: write out what they mean`)
    const source = typeof regex === 'string' ? regex : regex.source
    try {
      new RegExp(source, 'u')
    } catch (error) {
      throw new ResponseFormatError(`responseFormat.regex is not a regular expression: ${(error as Error).message}`)
    }
    return { regex: patternInText(source) }
  }
  const { schema } = format
  if (schema instanceof z.ZodType) return { schema: schemaForGrammar(z.toJSONSchema(schema)) as object }
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema))
    throw new ResponseFormatError('responseFormat.schema must be a zod type or a JSON schema object')
  return { schema: schemaForGrammar(schema) as object }
}

interface TokenizerGrammars {
  readonly vocabulary: Vocabulary
  readonly compiler: Promise<NativeCompiler>
  readonly compiled: Map<string, Promise<NativeGrammar>>
}

const known = new WeakMap<Tokenizer, Map<string, TokenizerGrammars>>()
/** Compiled grammars that are kept for one tokenizer; the oldest goes first. */
const KEPT_GRAMMARS = 64

function grammarsOf(tokenizer: Tokenizer, vocabSize: number, stopIds: readonly number[]): TokenizerGrammars {
  const sets = known.get(tokenizer) ?? new Map<string, TokenizerGrammars>()
  known.set(tokenizer, sets)
  const key = `${vocabSize}:${stopIds.join()}`
  let found = sets.get(key)
  if (!found) {
    const vocabulary = vocabularyOf(tokenizer, vocabSize, stopIds)
    found = { vocabulary, compiler: createNativeCompiler(vocabulary.bytes, stopIds), compiled: new Map() }
    sets.set(key, found)
  }
  return found
}

export interface ConstraintOptions {
  /** Tokens that the model gives logits for; default those of the tokenizer. */
  readonly vocabSize?: number
  /** What may end the text once it is complete; default the end-of-sequence token. */
  readonly stopIds?: readonly number[]
}

/**
 * Compiles a response format, or takes it from the cache. The caller frees what it gets.
 * @throws where the format is not valid or uses what the compiler does not know
 */
export async function createConstraint(
  tokenizer: Tokenizer,
  format: ResponseFormat,
  options: ConstraintOptions = {},
): Promise<TokenConstraint> {
  const vocabSize = options.vocabSize ?? tokenizer.vocabSize
  const stopIds = [...(options.stopIds ?? (tokenizer.eosId === undefined ? [] : [tokenizer.eosId]))].sort(
    (a, b) => a - b,
  )
  if (stopIds.length === 0) throw new Error('constrained output needs a token that ends it: give stopIds')
  const grammar = grammarOf(format)
  const { vocabulary, compiler, compiled } = grammarsOf(tokenizer, vocabSize, stopIds)
  const key = JSON.stringify(grammar)
  let native = compiled.get(key)
  if (!native) {
    native = compiler.then((c) => c.compile(grammar))
    compiled.set(key, native)
    if (compiled.size > KEPT_GRAMMARS) compiled.delete(compiled.keys().next().value!)
  }
  try {
    return new GrammarConstraint(await native, vocabulary)
  } catch (error) {
    compiled.delete(key)
    const what = 'regex' in grammar ? 'regular expression' : 'schema'
    throw new ResponseFormatError(`the ${what} of responseFormat cannot be compiled: ${(error as Error).message}`, {
      cause: error,
    })
  }
}
