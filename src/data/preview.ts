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
  /** Where the row came from. */
  place: string
  length: number
  numTrained: number
  tokens: PreviewToken[]
  /** The same as whole stretches of text, which keep characters that several tokens share. */
  runs: MarkedRun[]
}

/** Rows of a store, the first and then random ones (the same for the same seed). */
export function previewRows(
  store: TokenStore,
  tokenizer: Tokenizer,
  options: { count?: number; seed?: number } = {},
): PreviewRow[] {
  const count = Math.min(options.count ?? 3, store.numRows)
  const random = new CounterRandom(options.seed ?? 0, 'preview')
  const chosen = new Set<number>(count > 0 ? [0] : [])
  while (chosen.size < count) chosen.add(random.nextInt(store.numRows))
  return [...chosen].map((row) => {
    const document = store.read(row)
    const tokens = Array.from(document.inputIds, (id, i) => ({
      id,
      text: tokenizer.tokenText(id),
      trained: document.labels[i] !== ignoreIndex,
    }))
    return {
      place: store.placeOf(row),
      length: tokens.length,
      numTrained: tokens.filter(({ trained }) => trained).length,
      tokens,
      runs: markedRuns(document, tokenizer),
    }
  })
}
