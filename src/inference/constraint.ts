// Constrained output: a JSON schema, any JSON object or a regular expression → which tokens may come next. Grammars are
// compiled once per tokenizer; every sequence has a matcher of its own.
import * as z from 'zod'
import type { Tokenizer } from '../data/index.js'
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

class GrammarConstraint implements TokenConstraint {
  private readonly grammar: NativeGrammar
  private readonly matcher: NativeMatcher
  private readonly vocabSize: number
  private readonly stopIds: ReadonlySet<number>
  private readonly mask: Int32Array
  private isStopped = false
  private isFresh = false

  constructor(grammar: NativeGrammar, vocabSize: number, stopIds: ReadonlySet<number>) {
    this.grammar = grammar
    this.vocabSize = vocabSize
    this.stopIds = stopIds
    this.matcher = grammar.create()
    this.mask = new Int32Array(Math.ceil(vocabSize / WORD_BITS))
  }

  allowed(): Int32Array {
    if (this.isFresh) return this.mask
    this.isFresh = true
    if (this.isStopped) {
      this.mask.fill(0)
      for (const id of this.stopIds) this.mask[id >>> 5]! |= 1 << (id & 31)
      return this.mask
    }
    const words = this.matcher.GetNextTokenBitmask(this.vocabSize)
    for (let i = 0; i < this.mask.length; i++) this.mask[i] = words.get(i)
    words.delete()
    return this.mask
  }

  accept(id: number): void {
    if (this.isStopped) throw new Error(`token ${id} comes after the end of the constrained text`)
    if (!this.matcher.AcceptToken(id, false)) throw new Error(`the constraint does not allow token ${id} here`)
    this.isFresh = false
    this.isStopped = this.stopIds.has(id)
  }

  rollback(count: number): void {
    if (count <= 0) return
    this.matcher.Rollback(count)
    this.isStopped = false
    this.isFresh = false
  }

  fork(): TokenConstraint {
    return new GrammarConstraint(this.grammar, this.vocabSize, this.stopIds)
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
    return { regex: source }
  }
  const { schema } = format
  if (schema instanceof z.ZodType) return { schema: z.toJSONSchema(schema) }
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema))
    throw new ResponseFormatError('responseFormat.schema must be a zod type or a JSON schema object')
  return { schema }
}

interface TokenizerGrammars {
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
    const vocabulary = Array.from({ length: vocabSize }, (_, id) =>
      tokenizer.specialIds.has(id) || id >= tokenizer.vocabSize ? new Uint8Array(0) : tokenizer.tokenBytes(id),
    )
    found = { compiler: createNativeCompiler(vocabulary, stopIds), compiled: new Map() }
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
  const { compiler, compiled } = grammarsOf(tokenizer, vocabSize, stopIds)
  const key = JSON.stringify(grammar)
  let native = compiled.get(key)
  if (!native) {
    native = compiler.then((c) => c.compile(grammar))
    compiled.set(key, native)
    if (compiled.size > KEPT_GRAMMARS) compiled.delete(compiled.keys().next().value!)
  }
  try {
    return new GrammarConstraint(await native, vocabSize, new Set(stopIds))
  } catch (error) {
    compiled.delete(key)
    const what = 'regex' in grammar ? 'regular expression' : 'schema'
    throw new ResponseFormatError(`the ${what} of responseFormat cannot be compiled: ${(error as Error).message}`, {
      cause: error,
    })
  }
}
