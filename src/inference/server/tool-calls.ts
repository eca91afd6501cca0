// Tool calls in text, as Hermes, Qwen and SmolLM2 write them: <tool_call>{"name": …, "arguments": {…}}</tool_call>. Text
// comes in pieces and goes out as soon as it cannot become a call. What looks like a call and is none stays text.
import { randomBytes } from 'node:crypto'
import type { FunctionTool } from './chat-schema.js'

const open = '<tool_call>'
const close = '</tool_call>'

/** What a forced call is begun with, in the prompt. */
export const callOpening = `${open}\n`

export interface ToolCall {
  readonly id: string
  readonly type: 'function'
  /** `arguments` is JSON, as OpenAI has it. */
  readonly function: { readonly name: string; readonly arguments: string }
}

export type ParsedPart = { readonly text: string } | { readonly call: ToolCall }

export interface ToolCallParser {
  push(text: string): ParsedPart[]
  /** What is left when the text has ended. */
  end(): ParsedPart[]
}

function parseCall(body: string, names: ReadonlySet<string>): ToolCall | undefined {
  let value: unknown
  try {
    value = JSON.parse(body)
  } catch {
    return undefined
  }
  if (typeof value !== 'object' || value === null) return undefined
  const { name, arguments: given, parameters } = value as Record<string, unknown>
  if (typeof name !== 'string' || !names.has(name)) return undefined
  const values = given ?? parameters ?? {}
  const text = typeof values === 'string' ? values : JSON.stringify(values)
  return { id: `call_${randomBytes(12).toString('hex')}`, type: 'function', function: { name, arguments: text } }
}

/** How many characters at the end may be the beginning of `word`. */
function partialLength(text: string, word: string): number {
  for (let n = Math.min(text.length, word.length - 1); n > 0; n--) if (text.endsWith(word.slice(0, n))) return n
  return 0
}

/** `startsInCall`: the prompt ended with the opening of a call. */
export function createToolCallParser(options: { names: ReadonlySet<string>; startsInCall?: boolean }): ToolCallParser {
  let isInCall = options.startsInCall ?? false
  let hasCalled = isInCall
  let wasOpenedByPrompt = isInCall
  let pending = ''

  /** Text that stays text; white space around calls belongs to them. */
  const words = (text: string): ParsedPart[] => {
    const kept = hasCalled ? text.trimStart() : text
    if (kept !== '') hasCalled = false
    return kept === '' ? [] : [{ text: kept }]
  }
  const finishCall = (body: string, ending: string): ParsedPart[] => {
    const call = parseCall(body, options.names)
    const opening = wasOpenedByPrompt ? '' : open
    isInCall = false
    wasOpenedByPrompt = false
    if (!call) return words(opening + body + ending)
    hasCalled = true
    return [{ call }]
  }

  return {
    push(text) {
      pending += text
      const parts: ParsedPart[] = []
      for (;;) {
        if (isInCall) {
          const at = pending.indexOf(close)
          if (at < 0) return parts
          const body = pending.slice(0, at)
          pending = pending.slice(at + close.length)
          parts.push(...finishCall(body, close))
          continue
        }
        const at = pending.indexOf(open)
        if (at >= 0) {
          parts.push(...words(pending.slice(0, at).trimEnd()))
          pending = pending.slice(at + open.length)
          isInCall = true
          continue
        }
        const sure = pending.slice(0, pending.length - partialLength(pending, open)).trimEnd()
        pending = pending.slice(sure.length)
        parts.push(...words(sure))
        return parts
      }
    },
    end() {
      const rest = pending
      pending = ''
      return isInCall ? finishCall(rest, '') : words(rest)
    },
  }
}

/** References within the parameters of a tool, led to where those stand in the schema of a call. */
function anchorRefs(value: unknown, root: string): unknown {
  if (Array.isArray(value)) return value.map((part) => anchorRefs(part, root))
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value).map(([key, part]) => [
      key,
      key === '$ref' && typeof part === 'string' && part.startsWith('#')
        ? root + part.slice(1)
        : anchorRefs(part, root),
    ]),
  )
}

/** The JSON schema of one call to one of the tools. */
export function callSchema(tools: readonly FunctionTool[]): Record<string, unknown> {
  const definitions: Record<string, unknown> = {}
  const calls = tools.map(({ function: { name, parameters } }) => {
    const given = parameters ?? { type: 'object', properties: {}, additionalProperties: false }
    const hasRefs = JSON.stringify(given).includes('"$ref"')
    if (hasRefs) definitions[name] = anchorRefs(given, `#/$defs/${name}`)
    return {
      type: 'object',
      properties: { name: { const: name }, arguments: hasRefs ? { $ref: `#/$defs/${name}` } : given },
      required: ['name', 'arguments'],
      additionalProperties: false,
    }
  })
  const schema = calls.length === 1 ? calls[0]! : { anyOf: calls }
  return Object.keys(definitions).length > 0 ? { ...schema, $defs: definitions } : schema
}
