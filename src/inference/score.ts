// Scores rows of tokens: the log-probability of every token given those before it.
import { topTokens } from './generate.js'
import type { TokenChoice } from './request.js'
import { type InferenceSession, packSequences } from './session.js'

export interface TokenRow {
  readonly inputIds: readonly number[]
  /** Unshifted, as long as inputIds: −100 leaves a token out of `nll`. Absent: all tokens count. */
  readonly labels?: readonly number[]
}

export interface ScoredRow {
  readonly inputIds: readonly number[]
  /** Of inputIds[i] given those before it; null at 0. */
  readonly logps: (number | null)[]
  /** Sum of −logps over the scored tokens. */
  readonly nll: number
  /** Scored tokens. */
  readonly tokens: number
  /** Likeliest tokens after the last one. */
  readonly top?: TokenChoice[]
}

function check({ inputIds, labels }: TokenRow): void {
  if (inputIds.length === 0) throw new Error('a row without tokens cannot be scored')
  if (labels && labels.length !== inputIds.length)
    throw new Error(`a row has ${inputIds.length} inputIds and ${labels.length} labels; they must be as long`)
}

function scored({ inputIds, labels }: TokenRow, given: ArrayLike<number>): ScoredRow {
  const logps: (number | null)[] = [null, ...Array.from(given)]
  let nll = 0
  let tokens = 0
  for (let i = 1; i < logps.length; i++) {
    if (labels && labels[i]! < 0) continue
    nll -= logps[i]!
    tokens++
  }
  return { inputIds, logps, nll, tokens }
}

/** Scores rows in one run; together they must fit the session. */
export async function scoreRows(
  session: InferenceSession,
  rows: readonly TokenRow[],
  signal?: AbortSignal,
): Promise<ScoredRow[]> {
  for (const row of rows) check(row)
  const sequences = packSequences(rows.map(({ inputIds }) => inputIds))
  const positions: number[] = []
  const labels: number[] = []
  for (const [d, { inputIds }] of rows.entries())
    for (let i = 1; i < inputIds.length; i++) {
      positions.push(sequences.cuSeqlens[d]! + i - 1)
      labels.push(inputIds[i]!)
    }
  const logps = await session.logps(sequences, Int32Array.from(positions), Int32Array.from(labels), signal)
  let at = 0
  return rows.map((row) => {
    const from = at
    at += row.inputIds.length - 1
    return scored(row, logps.subarray(from, at))
  })
}

/** Scores one row. */
export async function scoreRow(
  session: InferenceSession,
  row: TokenRow,
  options: { top?: number; signal?: AbortSignal } = {},
): Promise<ScoredRow> {
  const [result] = await scoreRows(session, [row], options.signal)
  if (!options.top) return result!
  const sequences = packSequences([row.inputIds])
  const last = await session.logits(sequences, Int32Array.of(row.inputIds.length - 1), options.signal)
  return { ...result!, top: topTokens(last, options.top) }
}
