// Refuses rows whose loss mask teaches nothing, everything, or never to stop, and shows the row with its trained tokens marked.
import { DataError } from './errors.js'
import { type EncodedRow, ignoreIndex, type RowType } from './row-types/row-type.js'
import type { Tokenizer } from './tokenizer.js'

const maxShownCharacters = 1200

/** A stretch of tokens that are all trained or all not. */
export interface MarkedRun {
  text: string
  isTrained: boolean
}

/** The row as runs of trained and untrained text. */
export function markedRuns({ inputIds, labels }: EncodedRow, tokenizer: Tokenizer): MarkedRun[] {
  const runs: MarkedRun[] = []
  for (let start = 0; start < inputIds.length; ) {
    const isTrained = labels[start] !== ignoreIndex
    let end = start + 1
    while (end < inputIds.length && (labels[end] !== ignoreIndex) === isTrained) end++
    runs.push({ text: tokenizer.decode(inputIds.subarray(start, end)), isTrained })
    start = end
  }
  return runs
}

/** The row as text, trained parts in ⟦ ⟧, shortened in the middle of long untrained parts. */
export function showMarked(row: EncodedRow, tokenizer: Tokenizer): string {
  const runs = markedRuns(row, tokenizer)
  const budget = Math.max(80, Math.floor(maxShownCharacters / Math.max(1, runs.length)))
  return runs
    .map(({ text, isTrained }) => {
      const half = Math.floor(budget / 2)
      const short = text.length <= budget ? text : `${text.slice(0, half)} … ${text.slice(-half)}`
      return isTrained ? `⟦${short}⟧` : short
    })
    .join('')
}

/**
 * Throws where a row (before truncation) has no trained token, or for supervised types none that is masked, or leaves the token
 * that stops the answer untrained: a model trained so never stops (the padding token that equals the end token does this in
 * other toolkits).
 */
export function checkMask(
  row: EncodedRow,
  type: Pick<RowType, 'isSupervised' | 'name'>,
  tokenizer: Tokenizer,
  place: string,
  allowsUntrainedStop: boolean,
): void {
  const { inputIds, labels } = row
  const fail = (problem: string): never => {
    throw new DataError(
      place,
      `${problem}\n  trained tokens in ⟦ ⟧:\n  ${showMarked(row, tokenizer).replaceAll('\n', '\n  ')}`,
    )
  }
  const isStop = (id: number): boolean =>
    id === tokenizer.eosId || (tokenizer.specialIds.has(id) && id !== tokenizer.bosId)
  let numTrained = 0
  let lastTrained = -1
  for (let i = 0; i < labels.length; i++) {
    if (labels[i] === ignoreIndex) continue
    numTrained++
    lastTrained = i
    const isRunEnd = i + 1 < labels.length && labels[i + 1] === ignoreIndex
    if (isRunEnd && !allowsUntrainedStop && !isStop(inputIds[i]!) && isStop(inputIds[i + 1]!)) {
      const token = tokenizer.tokenText(inputIds[i + 1]!)
      fail(
        `the mask leaves the stop token ${token} (token ${i + 1}) untrained, so the model would not learn to stop; ` +
          'include it in the {% generation %} block or the labels, or set `allowUntrainedStop`',
      )
    }
  }
  if (numTrained === 0)
    fail('the mask leaves nothing to train (0 % of the tokens); add what the model should say, or remove the row')
  if (!type.isSupervised) return
  if (numTrained === labels.length) {
    fail(`the mask trains 100 % of the tokens, the prompt too; use type language-modelling if that is meant`)
  }
  if (!allowsUntrainedStop && !isStop(inputIds[lastTrained]!)) {
    fail(
      `the trained part does not end with a stop token, so the model would not learn to stop; ` +
        (tokenizer.eosId === undefined
          ? 'the tokenizer names no eos_token: set it in tokenizer_config.json'
          : 'end the answer in the chat template with one, keep `appendEos`, or set `allowUntrainedStop`'),
    )
  }
}
