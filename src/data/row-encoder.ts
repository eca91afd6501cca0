// Rows of one type → ids and labels, checked and cut to length (stop 6 of a run): what preparation, preview and evaluation share.
import type { ChatTemplate } from './chat-template.js'
import { DataError } from './errors.js'
import { checkSamePrompt, fitGroup, numTokens } from './group-truncation.js'
import { checkMask } from './mask-checks.js'
import { type GroupedRowType, isGrouped } from './row-types/grouped.js'
import { type RowTypeName, rowTypes } from './row-types/index.js'
import { countTargets, cut, type EncodeContext, type EncodedRow, type RowType } from './row-types/row-type.js'
import type { Tokenizer } from './tokenizer.js'

/** What to do with a row longer than `maxLength`: cut its end or its beginning, cut it into several, leave it out, or stop. */
export const truncations = ['keepStart', 'keepEnd', 'split', 'drop', 'error'] as const
export type Truncation = (typeof truncations)[number]

export interface EncodeOptions {
  tokenizer: Tokenizer
  template?: ChatTemplate | undefined
  /** The type of the rows; found from the first row where absent. */
  type?: RowTypeName | undefined
  /** Longest document in tokens. */
  maxLength: number
  /** Default `keepStart`. */
  truncation?: Truncation | undefined
  /** Train on all assistant messages (default) or the last one. */
  assistantTurns?: 'all' | 'last' | undefined
  /** End texts and completions with the end-of-sequence token (default true). */
  appendEos?: boolean | undefined
  /** Which pairs several scored answers make: the best against the worst (default), or every two. */
  pairs?: 'extremes' | 'all' | undefined
  /** Accept rows whose stop token is not trained. */
  allowUntrainedStop?: boolean | undefined
  templateVariables?: Record<string, unknown> | undefined
}

/** A row encoded, checked and cut: no document where it is dropped, several where it is split. */
export interface RowOutcome {
  documents: EncodedRow[]
  truncatedTokens: number
  /** Of rows that make groups: the number of each. */
  values?: number[]
  ties?: number
  dropped?: 'droppedTooLong' | 'droppedWithoutTarget' | 'droppedEmpty'
  /** Of rows that make groups: how many of them are dropped. */
  droppedGroups?: number
}

const leaveOut = (dropped: NonNullable<RowOutcome['dropped']>): RowOutcome => ({
  documents: [],
  truncatedTokens: 0,
  dropped,
})

/** The parts that have something to learn. */
function keep(parts: EncodedRow[], truncatedTokens = 0): RowOutcome {
  const documents = parts.filter((part) => countTargets(part) > 0)
  return documents.length > 0 ? { documents, truncatedTokens } : leaveOut('droppedWithoutTarget')
}

/** Encodes rows of one type under one set of options. */
export class RowEncoder {
  readonly type: RowType
  readonly #context: EncodeContext
  readonly #options: EncodeOptions
  readonly #truncation: Truncation

  /** @throws for a `maxLength` below 2, and where rows of the type cannot be split */
  constructor(options: EncodeOptions & { type: RowTypeName }) {
    this.type = rowTypes[options.type]
    this.#options = options
    this.#truncation = options.truncation ?? 'keepStart'
    if (!(Number.isInteger(options.maxLength) && options.maxLength >= 2)) {
      throw new Error(`maxLength must be an integer of at least 2, not ${options.maxLength}`)
    }
    if (this.#truncation === 'split' && !this.type.canSplit) {
      throw new Error(
        `truncation "split" would cut ${this.type.name} rows away from their prompts; use keepStart, keepEnd or drop`,
      )
    }
    this.#context = {
      tokenizer: options.tokenizer,
      template: options.template,
      assistantTurns: options.assistantTurns ?? 'all',
      appendEos: options.appendEos ?? true,
      pairs: options.pairs,
      templateVariables: options.templateVariables,
    }
  }

  #checkMask(document: EncodedRow, place: string): void {
    const { tokenizer, allowUntrainedStop = false } = this.#options
    checkMask(document, this.type, tokenizer, place, allowUntrainedStop)
  }

  /** @throws DataError where a length is over the limit and that is an error */
  #checkLength(length: number, place: string): void {
    const { maxLength } = this.#options
    if (length <= maxLength || this.#truncation !== 'error') return
    throw new DataError(place, `has ${length} tokens and maxLength is ${maxLength}; raise it, or set \`truncation\``)
  }

  /** The whole row with its mask checked, not cut. */
  encodeWhole(row: unknown, place: string): EncodedRow {
    const encoded = this.type.encode(row, place, this.#context)
    if (encoded.inputIds.length > 0) this.#checkMask(encoded, place)
    return encoded
  }

  /** @throws DataError with the place of a row that cannot be used */
  encode(row: unknown, place: string): RowOutcome {
    if (isGrouped(this.type)) return this.#encodeGroups(this.type, row, place)
    const { maxLength } = this.#options
    const whole = this.encodeWhole(row, place)
    const length = whole.inputIds.length
    if (length < 2) return leaveOut('droppedEmpty')
    if (length <= maxLength) return keep([whole])
    this.#checkLength(length, place)
    if (this.#truncation === 'drop') return leaveOut('droppedTooLong')
    if (this.#truncation === 'split') {
      const parts: EncodedRow[] = []
      for (let start = 0; start < length - 1; start += maxLength)
        parts.push(cut(whole, start, Math.min(length, start + maxLength)))
      return keep(parts)
    }
    const start = this.#truncation === 'keepEnd' ? length - maxLength : 0
    return keep([cut(whole, start, start + maxLength)], length - maxLength)
  }

  #encodeGroups(type: GroupedRowType, row: unknown, place: string): RowOutcome {
    const { groups, ties } = type.encodeGroups(row, place, this.#context)
    const documents: EncodedRow[] = []
    const values: number[] = []
    const outcome: RowOutcome & { ties: number; droppedGroups: number } = {
      documents,
      values,
      truncatedTokens: 0,
      ties,
      droppedGroups: 0,
    }
    for (const { documents: whole, value } of groups) {
      for (const document of whole) this.#checkMask(document, place)
      checkSamePrompt(whole, place)
      this.#checkLength(Math.max(...whole.map(({ inputIds }) => inputIds.length)), place)
      const fitted = fitGroup(whole, this.#options.maxLength, this.#truncation)
      if (fitted === 'ties') outcome.ties++
      else if (typeof fitted === 'string') {
        outcome.dropped = fitted
        outcome.droppedGroups++
      } else {
        outcome.truncatedTokens += numTokens(whole) - numTokens(fitted)
        documents.push(...fitted)
        values.push(value)
      }
    }
    return outcome
  }
}
