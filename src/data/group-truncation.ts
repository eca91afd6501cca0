// Documents that belong together, cut to a limit: both sides of a pair lose the same beginning, so that they still answer one
// prompt, and a pair that no longer teaches anything is left out.
import { DataError } from './errors.js'
import type { Truncation } from './row-encoder.js'
import { countTargets, cut, type EncodedRow, ignoreIndex } from './row-types/row-type.js'

const isSame = (a: Int32Array, b: Int32Array): boolean => a.length === b.length && a.every((id, i) => id === b[i])

export const numTokens = (documents: readonly EncodedRow[]): number =>
  documents.reduce((sum, { inputIds }) => sum + inputIds.length, 0)

/** Tokens before the first trained one. */
function promptLength({ labels }: EncodedRow): number {
  const first = labels.findIndex((label) => label !== ignoreIndex)
  return first < 0 ? labels.length : first
}

/** @throws DataError where the sides of a pair do not answer the same tokens */
export function checkSamePrompt([first, ...others]: EncodedRow[], place: string): void {
  const length = promptLength(first!)
  const prompt = first!.inputIds.subarray(0, length)
  for (const other of others) {
    if (promptLength(other) === length && isSame(prompt, other.inputIds.subarray(0, length))) continue
    throw new DataError(
      place,
      'the prompt becomes other tokens before one answer than before the other; begin both answers alike (with a space, or a letter), or end the prompt with white space',
    )
  }
}

/**
 * The documents of a group with at most `maxLength` tokens each, or why the group is left out. `keepEnd` takes as many tokens
 * from the beginning of every document; a group that would lose its whole prompt so has no target left that answers it.
 */
export function fitGroup(
  documents: EncodedRow[],
  maxLength: number,
  truncation: Truncation,
): EncodedRow[] | 'droppedTooLong' | 'droppedWithoutTarget' | 'ties' {
  const longest = Math.max(...documents.map(({ inputIds }) => inputIds.length))
  if (longest > maxLength && truncation === 'drop') return 'droppedTooLong'
  const start = truncation === 'keepEnd' ? Math.max(0, longest - maxLength) : 0
  if (start > 0 && start >= promptLength(documents[0]!)) return 'droppedWithoutTarget'
  const parts = documents.map((document) => cut(document, start, Math.min(document.inputIds.length, start + maxLength)))
  if (!parts.every((part) => countTargets(part) > 0)) return 'droppedWithoutTarget'
  // Cut before their first difference, or the same answer scored twice: neither is better
  const isTie = parts.length > 1 && parts.every(({ inputIds }) => isSame(inputIds, parts[0]!.inputIds))
  return isTie ? 'ties' : parts
}
