// What `espalier plan` shows before training: rows as the model will see them, token by token, with the trained ones flagged.
import { type MarkedRun, markedRuns } from './mask-checks.js'
import { CounterRandom } from './random.js'
import { ignoreIndex } from './row-types/row-type.js'
import type { TokenStore } from './token-store.js'
import type { Tokenizer } from './tokenizer.js'

export interface PreviewToken {
  id: number
  text: string
  trained: boolean
}

export interface PreviewRow {
  /** Where the row came from; of preference data also which side this is, and the number that the row carries. */
  place: string
  length: number
  numTrained: number
  tokens: PreviewToken[]
  /** The same as whole stretches of text, which keep characters that several tokens share. */
  runs: MarkedRun[]
}

const sides = ['chosen', 'rejected']

/** `train.jsonl:17`, `train.jsonl:17 (chosen, margin 2)` or `train.jsonl:17 (label 1)`. */
function describePlace(store: TokenStore, document: number): string {
  const { groupSize, valueName } = store
  const details = [
    ...(groupSize === sides.length ? [sides[document % groupSize]] : []),
    ...(valueName === undefined ? [] : [`${valueName} ${store.valueOf(Math.floor(document / groupSize))}`]),
  ]
  return store.placeOf(document) + (details.length > 0 ? ` (${details.join(', ')})` : '')
}

/** Rows of a store, the first and then random ones (the same for the same seed); of pairs both sides, one after the other. */
export function previewRows(
  store: TokenStore,
  tokenizer: Tokenizer,
  options: { count?: number; seed?: number } = {},
): PreviewRow[] {
  const { groupSize, numGroups } = store
  const count = Math.min(options.count ?? 3, numGroups)
  const random = new CounterRandom(options.seed ?? 0, 'preview')
  const chosen = new Set<number>(count > 0 ? [0] : [])
  while (chosen.size < count) chosen.add(random.nextInt(numGroups))
  const rows = [...chosen].flatMap((group) => Array.from({ length: groupSize }, (_, i) => group * groupSize + i))
  return rows.map((row) => {
    const document = store.read(row)
    const tokens = Array.from(document.inputIds, (id, i) => ({
      id,
      text: tokenizer.tokenText(id),
      trained: document.labels[i] !== ignoreIndex,
    }))
    return {
      place: describePlace(store, row),
      length: tokens.length,
      numTrained: tokens.filter(({ trained }) => trained).length,
      tokens,
      runs: markedRuns(document, tokenizer),
    }
  })
}
