// Held-out rows in the forms that evaluation takes: documents with aligned labels, and questions with their possible answers.
import { DataError } from './errors.js'
import type { PlacedRow } from './formats/format.js'
import type { RowEncoder } from './row-encoder.js'
import { type EncodedRow, ignoreIndex, type Row } from './row-types/row-type.js'
import type { TokenStore } from './token-store.js'
import type { Tokenizer } from './tokenizer.js'

/** A document: ids, and `labels[i]` the target at position i (the token after `ids[i]`, −100 for none). */
export interface HeldOutDocument {
  ids: Int32Array
  labels: Int32Array
  row: number
}

/** A question with its possible answers as ids; `answer` is the index of the right one. */
export interface HeldOutChoices {
  prompt: Int32Array
  choices: Int32Array[]
  answer: number
  row: number
  place: string
}

/** Labels moved one to the left, so that they stand where they are predicted. */
export function alignLabels(labels: Int32Array): Int32Array {
  const aligned = new Int32Array(labels.length).fill(ignoreIndex)
  aligned.set(labels.subarray(1))
  return aligned
}

/** The first documents of a store. */
export function heldOutDocuments(store: TokenStore, maxRows = store.numRows): HeldOutDocument[] {
  return Array.from({ length: Math.min(maxRows, store.numRows) }, (_, row) => readHeldOut(store, row))
}

function readHeldOut(store: TokenStore, row: number): HeldOutDocument {
  const { inputIds, labels } = store.read(row)
  return { ids: inputIds, labels: alignLabels(labels), row }
}

/** A row of preference data: its documents, the chosen one first, and the numbers that it carries. */
export interface HeldOutGroup {
  documents: HeldOutDocument[]
  numbers: Record<string, number>
}

/** The first rows of a store of preference data. */
export function heldOutGroups(store: TokenStore, maxRows = store.numGroups): HeldOutGroup[] {
  const { groupSize, valueName } = store
  return Array.from({ length: Math.min(maxRows, store.numGroups) }, (_, group) => ({
    documents: Array.from({ length: groupSize }, (_, i) => readHeldOut(store, group * groupSize + i)),
    numbers: valueName === undefined ? {} : { [valueName]: store.valueOf(group) },
  }))
}

/** First position and end of the last trained run. */
function lastTrainedRun({ labels }: EncodedRow): { start: number; end: number } {
  let end = labels.length
  while (end > 0 && labels[end - 1] === ignoreIndex) end--
  let start = end
  while (start > 0 && labels[start - 1] !== ignoreIndex) start--
  return { start, end }
}

/** A row as a question to be answered in free text. */
export interface HeldOutQuestion {
  /** What the model sees before it answers. */
  prompt: Int32Array
  expected: string
  /** Tokens of the row's own answer. */
  answerTokens: number
  row: Row
  place: string
}

/** A row cut before its last answer; undefined where rows of its type have none. */
export function encodeQuestion(encoder: RowEncoder, { row, place }: PlacedRow): HeldOutQuestion | undefined {
  const { type } = encoder
  if (!type.answerOf) return undefined
  const own = encoder.encodeWhole(row, place)
  const { start, end } = lastTrainedRun(own)
  const expected = type.answerOf(row as Row)
  return { prompt: own.inputIds.slice(0, start), expected, answerTokens: end - start, row: row as Row, place }
}

/**
 * A row as a question: each choice put in the place of its answer and encoded as in training. The stop token is left out unless
 * one answer begins with another. Throws where the row's own answer is none of the choices.
 */
export function encodeChoices(
  encoder: RowEncoder,
  placed: PlacedRow,
  choices: readonly string[],
  tokenizer: Tokenizer,
  index = 0,
): HeldOutChoices {
  const { type } = encoder
  const { row, place } = placed
  if (!type.answerOf || !type.withAnswer)
    throw new DataError(place, `rows of type ${type.name} have no answer to compare`)
  const own = encoder.encodeWhole(row, place) // also checks the row's form
  const answer = choices.indexOf(type.answerOf(row as Row))
  if (answer < 0) {
    throw new DataError(
      place,
      `the answer ${JSON.stringify(type.answerOf(row as Row))} is none of the choices ${choices.map((choice) => JSON.stringify(choice)).join(', ')}`,
    )
  }
  const { start } = lastTrainedRun(own)
  const prompt = own.inputIds.slice(0, start)
  const withStop = choices.map((choice) => {
    const encoded = encoder.encodeWhole(type.withAnswer!(row as Row, choice), place)
    const run = lastTrainedRun(encoded)
    const isSamePrompt = run.start === start && prompt.every((id, i) => encoded.inputIds[i] === id)
    if (!isSamePrompt)
      throw new DataError(
        place,
        `the answer ${JSON.stringify(choice)} changes the tokens of the prompt before it; choose answers that begin with a letter`,
      )
    return encoded.inputIds.slice(run.start, run.end)
  })
  const isStop = (id: number | undefined): boolean =>
    id !== undefined && (id === tokenizer.eosId || tokenizer.specialIds.has(id))
  const bare = withStop.map((ids) => (ids.length > 1 && isStop(ids.at(-1)) ? ids.slice(0, -1) : ids))
  const isPrefix = (a: Int32Array, b: Int32Array): boolean => a.length <= b.length && a.every((id, i) => id === b[i])
  const isAmbiguous = bare.some((a, i) => bare.some((b, j) => i !== j && isPrefix(a, b)))
  return { prompt, choices: isAmbiguous ? withStop : bare, answer, row: index, place }
}
