// Scores rows of tokens: the log-probability of every token given those before it.
import { type GeneratedToken, topTokens } from './generate.js'
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
  readonly top?: GeneratedToken[]
}

/** Scores one row. */
export async function scoreRow(
  session: InferenceSession,
  row: TokenRow,
  options: { top?: number; signal?: AbortSignal } = {},
): Promise<ScoredRow> {
  const { inputIds, labels } = row
  if (inputIds.length === 0) throw new Error('a row without tokens cannot be scored')
  if (labels && labels.length !== inputIds.length)
    throw new Error(`a row has ${inputIds.length} inputIds and ${labels.length} labels; they must be as long`)
  const sequences = packSequences([inputIds])
  const rows = Int32Array.from({ length: inputIds.length - 1 }, (_, i) => i)
  const scored = await session.logps(sequences, rows, Int32Array.from(inputIds.slice(1)), options.signal)
  const logps: (number | null)[] = [null, ...scored]
  let nll = 0
  let tokens = 0
  for (let i = 1; i < logps.length; i++) {
    if (labels && labels[i]! < 0) continue
    nll -= logps[i]!
    tokens++
  }
  const result = { inputIds, logps, nll, tokens }
  if (!options.top) return result
  const last = await session.logits(sequences, Int32Array.of(inputIds.length - 1), options.signal)
  return { ...result, top: topTokens(last, options.top) }
}
