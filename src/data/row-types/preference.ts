// Rows of {prompt?, chosen, rejected, margin?}: two answers to one prompt, the first preferred. Without a prompt both sides
// hold it: it is what they have in common.
import { isDeepStrictEqual } from 'node:util'
import type { ChatMessage } from '../chat-template.js'
import { brief } from '../errors.js'
import { defineGroupedRowType } from './grouped.js'
import { parseMessages } from './messages.js'
import { promptCompletion } from './prompt-completion.js'

type Fail = (problem: string) => never
export type Side = string | ChatMessage[]

/** Both sides in the form of {prompt, completion} rows. */
export interface ParsedPair {
  prompt: Side
  chosen: Side
  rejected: Side
  tools: unknown
  margin: number
}

/**
 * The prompt that two texts have in common: their common beginning, cut back to before its last white space, so that no
 * word is torn and both completions begin with a space.
 */
function commonText(chosen: string, rejected: string, fail: Fail): ParsedPair['prompt'] {
  let end = 0
  while (end < chosen.length && chosen[end] === rejected[end]) end++
  const common = chosen.slice(0, end)
  const prompt = /^([\s\S]*\S)\s+\S*$/.exec(common)?.[1] ?? ''
  if (prompt === '') {
    fail('"chosen" and "rejected" begin with no word in common, so the prompt cannot be told; give it as "prompt"')
  }
  return prompt
}

/** Equal whatever the order of their keys, and where one lacks what the other has as null: columns differ so in files. */
function isSameMessage(a: ChatMessage | undefined, b: ChatMessage | undefined): boolean {
  const present = (message = {}) => Object.fromEntries(Object.entries(message).filter(([, value]) => value != null))
  return isDeepStrictEqual(present(a), present(b))
}

const isSameSide = (a: Side, b: Side): boolean =>
  typeof a === 'string' || typeof b === 'string'
    ? a === b
    : a.length === b.length && a.every((message, i) => isSameMessage(message, b[i]))

function commonMessages(chosen: ChatMessage[], rejected: ChatMessage[], fail: Fail): ChatMessage[] {
  let end = 0
  while (end < Math.min(chosen.length, rejected.length) && isSameMessage(chosen[end], rejected[end])) end++
  if (end === 0) fail('"chosen" and "rejected" have no first message in common; give the prompt as "prompt"')
  if (end === chosen.length || end === rejected.length) {
    fail('one side has no message of its own behind the prompt; each needs an answer')
  }
  const parted = [chosen[end]!, rejected[end]!].find(({ role }) => role !== 'assistant')
  if (parted) {
    fail(
      `"chosen" and "rejected" part at messages[${end}] of the role "${parted.role}", so they answer different prompts; both must be answers to the same one`,
    )
  }
  return chosen.slice(0, end)
}

/** Two full sides → prompt and what each adds to it. */
function splitSides(chosen: Side, rejected: Side, fail: Fail): Pick<ParsedPair, 'prompt' | 'chosen' | 'rejected'> {
  if (typeof chosen === 'string' && typeof rejected === 'string') {
    const prompt = commonText(chosen, rejected, fail) as string
    return { prompt, chosen: chosen.slice(prompt.length), rejected: rejected.slice(prompt.length) }
  }
  const prompt = commonMessages(chosen as ChatMessage[], rejected as ChatMessage[], fail)
  const rest = (side: Side) => (side as ChatMessage[]).slice(prompt.length)
  return { prompt, chosen: rest(chosen), rejected: rest(rejected) }
}

/** The answer of one side; of messages the last must be the assistant's, for that is where a side is judged. */
export function parseSide(value: unknown, name: string, fail: Fail): Side {
  if (Array.isArray(value)) {
    const messages = parseMessages(value, name, fail)
    const { role } = messages.at(-1)!
    if (role !== 'assistant') {
      fail(
        `the last message of "${name}" has the role "${role}" and must have the role "assistant"; end each side with its answer`,
      )
    }
    return messages
  }
  if (typeof value !== 'string') fail(`"${name}" must be a string or a list of messages, not ${brief(value)}`)
  if (value === '') fail(`"${name}" is empty; remove the row`)
  return value as string
}

function parseMargin(value: unknown, fail: Fail): number {
  if (value === undefined || value === null) return 0
  if (typeof value !== 'number' || !Number.isFinite(value))
    fail(`"margin" must be a finite number, not ${brief(value)}`)
  return value as number
}

/** Both sides of a pair as documents. */
export function encodePair(pair: ParsedPair, context: Parameters<typeof promptCompletion.encode>[2], place: string) {
  const side = (completion: Side) =>
    promptCompletion.encode({ prompt: pair.prompt, completion, tools: pair.tools }, place, context)
  return { documents: [side(pair.chosen), side(pair.rejected)], value: pair.margin }
}

export const preference = defineGroupedRowType<ParsedPair>({
  name: 'preference',
  description: '{prompt?, chosen, rejected, margin?}: two answers, the first preferred',
  columns: ['chosen', 'rejected'],
  optionalColumns: ['prompt', 'margin', 'tools'],
  groupSize: 2,
  valueName: 'margin',
  parse(row, fail) {
    const chosen = parseSide(row.chosen, 'chosen', fail)
    const rejected = parseSide(row.rejected, 'rejected', fail)
    if (typeof chosen !== typeof rejected) fail('"chosen" and "rejected" must both be texts, or both lists of messages')
    if (isSameSide(chosen, rejected)) {
      fail('"chosen" and "rejected" are the same, so nothing is preferred; remove the row')
    }
    const rest = { tools: row.tools, margin: parseMargin(row.margin, fail) }
    const { prompt } = row
    // A text beside whole conversations only repeats what they begin with
    if (prompt === undefined || prompt === null || (typeof prompt === 'string' && typeof chosen !== 'string')) {
      return { ...splitSides(chosen, rejected, fail), ...rest }
    }
    if (typeof prompt === 'string') return { prompt, chosen, rejected, ...rest }
    if (typeof chosen === 'string') fail('"prompt" is a list of messages and "chosen" a text; make both the same')
    const before = parseMessages(prompt, 'prompt', fail)
    // Whole conversations that begin with the prompt
    const repeats = [chosen, rejected].every((side) =>
      before.every((message, i) => isSameMessage(message, (side as ChatMessage[])[i])),
    )
    if (repeats) return { ...splitSides(chosen, rejected, fail), ...rest }
    return { prompt: before, chosen, rejected, ...rest }
  },
  encodeGroups: (pair, context, place) => ({ groups: [encodePair(pair, context, place)], ties: 0 }),
})
