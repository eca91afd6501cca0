// What a dataset type is: how a row of it is checked and how it becomes ids and labels (stop 6 of a run). One file per type
// and one line in index.ts.
import type { ChatTemplate } from '../chat-template.js'
import { DataError, messageOf } from '../errors.js'
import type { MarkedIds, Tokenizer } from '../tokenizer.js'

/** The label of a token that is not trained. */
export const ignoreIndex = -100

/** A row before tokenization: the columns of a file's row or an object from a dataset module. */
export type Row = Record<string, unknown>

/** Ids and labels of one document, unshifted: `labels[i]` is `inputIds[i]` where trained, else −100. */
export interface EncodedRow {
  inputIds: Int32Array
  labels: Int32Array
}

export interface EncodeContext {
  tokenizer: Tokenizer
  /** Needed by rows of messages. */
  template?: ChatTemplate | undefined
  /** Train on every assistant message or on the last one only. */
  assistantTurns: 'all' | 'last'
  /** End texts and completions with the end-of-sequence token. */
  appendEos: boolean
  /** Which pairs several scored answers make: the best against the worst (default), or every two. */
  pairs?: 'extremes' | 'all' | undefined
  /** Further variables of the chat template. */
  templateVariables?: Record<string, unknown> | undefined
}

export interface RowType {
  name: string
  /** One line for help texts. */
  description: string
  /** Columns that make a row one of this type; detection looks for all of them. */
  columns: readonly string[]
  optionalColumns: readonly string[]
  /** Some tokens must be masked and the stop token must be trained. */
  isSupervised: boolean
  /** A row may be cut into several of `maxLength`. */
  canSplit: boolean
  /** Checks a row and encodes it; throws a DataError that names the place. */
  encode(row: unknown, place: string, context: EncodeContext): EncodedRow
  /** The text that a row asks for, where it asks for one. */
  answerOf?(row: Row): string
  /** The same row with another answer. */
  withAnswer?(row: Row, answer: string): Row
}

export interface RowTypeDefinition<T> extends Omit<RowType, 'encode'> {
  /** The row in the form that `encode` takes; `fail` throws with the place and what to do. */
  parse(row: Row, fail: (problem: string) => never): T
  encode(row: T, context: EncodeContext): EncodedRow
}

export function defineRowType<T>(definition: RowTypeDefinition<T>): RowType {
  return {
    ...definition,
    encode(row, place, context) {
      const fail = (problem: string): never => {
        throw new DataError(place, problem)
      }
      if (typeof row !== 'object' || row === null || Array.isArray(row)) {
        fail(`a row must be an object with ${definition.columns.map((name) => `"${name}"`).join(' and ')}`)
      }
      const parsed = definition.parse(row as Row, fail)
      try {
        return definition.encode(parsed, context)
      } catch (error) {
        if (error instanceof DataError) throw error
        throw new DataError(place, messageOf(error), { cause: error })
      }
    },
  }
}

/** Labels from a mask: the ids themselves where trained. */
export function labelled({ ids, trained }: MarkedIds): EncodedRow {
  const labels = new Int32Array(ids.length)
  for (let i = 0; i < ids.length; i++) labels[i] = trained[i] ? ids[i]! : ignoreIndex
  return { inputIds: ids, labels }
}

/** Parts laid end to end, each wholly trained or not at all. */
export function joined(parts: readonly { ids: ArrayLike<number>; isTrained: boolean }[]): EncodedRow {
  const length = parts.reduce((sum, part) => sum + part.ids.length, 0)
  const inputIds = new Int32Array(length)
  const labels = new Int32Array(length).fill(ignoreIndex)
  let offset = 0
  for (const { ids, isTrained } of parts) {
    inputIds.set(ids, offset)
    if (isTrained) labels.set(ids, offset)
    offset += ids.length
  }
  return { inputIds, labels }
}

/** Tokens that the loss counts: labels other than −100 from the second position on. */
export function countTargets({ labels }: EncodedRow): number {
  let count = 0
  for (let i = 1; i < labels.length; i++) if (labels[i] !== ignoreIndex) count++
  return count
}

/** Tokens [start, end) of a document. */
export function cut(row: EncodedRow, start: number, end: number): EncodedRow {
  return { inputIds: row.inputIds.subarray(start, end), labels: row.labels.subarray(start, end) }
}

/** What goes before a plain text: the tokenizer's own prefix, unless the text already begins with the BOS token. */
export function prefixFor(text: string, tokenizer: Tokenizer): readonly number[] {
  const hasBos = tokenizer.bosToken !== undefined && tokenizer.bosToken !== '' && text.startsWith(tokenizer.bosToken)
  return hasBos ? [] : tokenizer.prefixIds
}

/** What goes after a text that is complete: the EOS token, unless it is already there. */
export function suffixFor(text: string, context: EncodeContext): readonly number[] {
  const { eosId, eosToken } = context.tokenizer
  if (!context.appendEos || eosId === undefined) return []
  return eosToken !== undefined && eosToken !== '' && text.endsWith(eosToken) ? [] : [eosId]
}
