// Two answers to one prompt, to be compared by a person, a judge or a rule: from rows of preferences, of scored answers, or of
// answers that nobody has judged yet. The order of the two says nothing about which is better.
import { createHash } from 'node:crypto'
import type { ChatMessage } from './chat-template.js'
import { DataError, messageOf } from './errors.js'
import type { RowSource } from './row-source.js'
import { encodePair, preference, type Side } from './row-types/preference.js'
import { type EncodeContext, ignoreIndex, type Row } from './row-types/row-type.js'
import { pairsOf, parseCompletions, scored } from './row-types/scored.js'

export interface Comparison {
  /** A hash of the prompt and both answers: the same pair has it wherever it comes from. */
  readonly id: string
  readonly prompt: Side
  readonly tools?: unknown
  readonly first: Side
  readonly second: Side
  /** What the data says: 1 the first is better, 0 the second; absent where it does not say. */
  readonly known?: 0 | 1
  /** Where the row was. */
  readonly place: string
}

/** Token ids of a prompt with one of its answers, and where the answer begins. */
export interface ComparedDocument {
  readonly inputIds: Int32Array
  readonly completionStart: number
}

const sha256 = (value: unknown): string => createHash('sha256').update(JSON.stringify(value)).digest('hex')

/** A comparison of two answers, ordered by their hashes. @param better the answer that the data prefers */
export function compareAnswers(
  prompt: Side,
  answers: readonly [Side, Side],
  { tools, better, place }: { tools?: unknown; better?: Side; place: string },
): Comparison {
  const [first, second] = answers
    .map((side) => ({ side, hash: sha256([prompt, side]) }))
    .sort((a, b) => (a.hash < b.hash ? -1 : 1))
    .map(({ side }) => side) as [Side, Side]
  return {
    id: sha256([prompt, tools ?? null, first, second]).slice(0, 16),
    prompt,
    ...(tools === undefined || tools === null ? {} : { tools }),
    first,
    second,
    ...(better === undefined ? {} : { known: better === first ? 1 : 0 }),
    place,
  }
}

/** What can be compared in a row; nothing in a row of {prompt} alone. */
function comparisonsOf(row: Row, place: string, which: 'extremes' | 'all'): Comparison[] {
  const fail = (problem: string): never => {
    throw new DataError(place, problem)
  }
  if ('chosen' in row && 'rejected' in row) {
    const { prompt, chosen, rejected, tools } = preference.parse(row, fail)
    return [compareAnswers(prompt, [chosen, rejected], { tools, better: chosen, place })]
  }
  if (!('completions' in row)) {
    fail(
      'holds nothing to compare; annotation takes rows of {prompt, chosen, rejected}, {prompt, completions, scores?} or {prompt}. If another stage of the recipe has such rows, name it',
    )
  }
  if ('scores' in row) {
    const { prompt, completions, scores, tools } = scored.parse(row, fail)
    return pairsOf(scores, which).pairs.map(([a, b]) =>
      compareAnswers(prompt, [completions[a]!, completions[b]!], { tools, better: completions[a]!, place }),
    )
  }
  const { prompt, completions, tools } = parseCompletions(row, fail)
  return completions.flatMap((a, i) =>
    completions.slice(i + 1).map((b) => compareAnswers(prompt, [a, b], { tools, place })),
  )
}

/** Whether the rows of a source are prompts whose answers must be sampled first. */
export async function holdsPromptsOnly(source: RowSource): Promise<boolean> {
  for await (const { row } of source.rows()) {
    const columns = Object.keys((row ?? {}) as Row)
    return columns.includes('prompt') && !['chosen', 'completion', 'completions'].some((name) => columns.includes(name))
  }
  return false
}

/** All comparisons of a source, each once, those of two equal answers left out. @throws DataError with the place of a row */
export async function readComparisons(
  source: RowSource,
  options: {
    /** Which pairs scored answers make: the best against the worst (default), or every two. */
    pairs?: 'extremes' | 'all' | undefined
    maxPairs?: number | undefined
    signal?: AbortSignal | undefined
  } = {},
): Promise<Comparison[]> {
  const { pairs = 'extremes', maxPairs = Number.POSITIVE_INFINITY, signal } = options
  const found = new Map<string, Comparison>()
  for await (const { row, place } of source.rows()) {
    signal?.throwIfAborted()
    if (found.size >= maxPairs) break
    if (typeof row !== 'object' || row === null || Array.isArray(row)) throw new DataError(place, 'must be an object')
    for (const comparison of comparisonsOf(row as Row, place, pairs)) {
      const isSame = JSON.stringify(comparison.first) === JSON.stringify(comparison.second)
      if (!isSame && found.size < maxPairs && !found.has(comparison.id)) found.set(comparison.id, comparison)
    }
  }
  return [...found.values()]
}

/** Both answers as documents, the first one first. @throws DataError where an answer has no token */
export function encodeComparison(comparison: Comparison, context: EncodeContext): [ComparedDocument, ComparedDocument] {
  const { prompt, first, second, tools = null, place } = comparison
  try {
    const { documents } = encodePair({ prompt, chosen: first, rejected: second, tools, margin: 0 }, context, place)
    return documents.map(({ inputIds, labels }) => {
      const completionStart = labels.findIndex((label) => label !== ignoreIndex)
      if (completionStart < 0) throw new Error('an answer has no token')
      return { inputIds, completionStart }
    }) as [ComparedDocument, ComparedDocument]
  } catch (error) {
    if (error instanceof DataError) throw error
    throw new DataError(place, messageOf(error), { cause: error })
  }
}

/** A prompt or an answer as people read it. */
export function readableText(side: Side): string {
  if (typeof side === 'string') return side
  const textOf = (value: unknown): string =>
    typeof value === 'string' ? value : value == null ? '' : JSON.stringify(value)
  const said = ({ content, tool_calls: calls }: ChatMessage): string =>
    [textOf(content), textOf(calls)].filter(Boolean).join('\n')
  return side.length === 1 && side[0]!.role === 'assistant'
    ? said(side[0]!)
    : side.map((message) => `${message.role}: ${said(message)}`).join('\n')
}
