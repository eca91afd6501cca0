// Rows of {prompt, completions, scores}: several answers to one prompt with a score each, turned into pairs. Equal scores
// make no pair; the margin is the difference.
import { brief } from '../errors.js'
import { defineGroupedRowType } from './grouped.js'
import { parseMessages } from './messages.js'
import { encodePair, parseSide, type Side } from './preference.js'
import type { Row } from './row-type.js'

type Fail = (problem: string) => never

export interface ParsedCompletions {
  prompt: Side
  completions: Side[]
  tools: unknown
}

export interface ParsedScores extends ParsedCompletions {
  scores: number[]
}

/** A prompt with two answers at least. */
export function parseCompletions(row: Row, fail: Fail): ParsedCompletions {
  const { completions } = row
  if (!Array.isArray(completions) || completions.length < 2) {
    fail(`"completions" must be a list of two answers at least, not ${brief(completions)}`)
  }
  const isText = typeof row.prompt === 'string'
  const side = (value: unknown, name: string): Side => {
    if (isText !== (typeof value === 'string'))
      fail(`"${name}" must be a ${isText ? 'text' : 'list of messages'} like "prompt", not ${brief(value)}`)
    return parseSide(value, name, fail)
  }
  return {
    prompt: isText ? (row.prompt as string) : parseMessages(row.prompt, 'prompt', fail),
    completions: (completions as unknown[]).map((value, i) => side(value, `completions[${i}]`)),
    tools: row.tools,
  }
}

function parseScores(scores: unknown, count: number, fail: Fail): number[] {
  if (!Array.isArray(scores) || scores.length !== count) {
    fail(`"scores" must be a list of ${count} numbers, one for each completion`)
  }
  const wrong = (scores as unknown[]).findIndex((score) => typeof score !== 'number' || !Number.isFinite(score))
  if (wrong >= 0) fail(`scores[${wrong}] must be a finite number, not ${brief((scores as unknown[])[wrong])}`)
  return scores as number[]
}

/** Index pairs, the better one first: the best against the worst, or every two; those of equal scores are left out. */
export function pairsOf(
  scores: readonly number[],
  which: 'extremes' | 'all',
): { pairs: [number, number][]; ties: number } {
  const order = scores.map((_, i) => i).sort((a, b) => scores[b]! - scores[a]! || a - b)
  const candidates: [number, number][] =
    which === 'extremes'
      ? [[order[0]!, order.at(-1)!]]
      : order.flatMap((better, i) => order.slice(i + 1).map((worse): [number, number] => [better, worse]))
  const pairs = candidates.filter(([better, worse]) => scores[better]! > scores[worse]!)
  return { pairs, ties: candidates.length - pairs.length }
}

export const scored = defineGroupedRowType<ParsedScores>({
  name: 'scored',
  description: '{prompt, completions, scores}: answers with scores, made into pairs',
  columns: ['prompt', 'completions', 'scores'],
  optionalColumns: ['tools'],
  groupSize: 2,
  valueName: 'margin',
  parse(row, fail) {
    const parsed = parseCompletions(row, fail)
    return { ...parsed, scores: parseScores(row.scores, parsed.completions.length, fail) }
  },
  encodeGroups({ prompt, completions, scores, tools }, context, place) {
    const { pairs, ties } = pairsOf(scores, context.pairs ?? 'extremes')
    const groups = pairs.map(([better, worse]) =>
      encodePair(
        {
          prompt,
          chosen: completions[better]!,
          rejected: completions[worse]!,
          tools,
          margin: scores[better]! - scores[worse]!,
        },
        context,
        place,
      ),
    )
    return { groups, ties }
  },
})
