// The body of a chat completion, and its messages as the chat template takes them.
import { z } from 'zod'
import type { ChatMessage } from '../../data/index.js'
import { badRequest } from './errors.js'
import { jsonObject, maxTopLogprobs, maybe, refused, samplingFields } from './schemas.js'

const maxMessages = 4096
const maxTools = 128

const textPart = z.strictObject({
  type: z.literal('text', { error: 'only parts of type "text" are supported' }),
  text: z.string(),
})
const content = z.union([z.string(), z.array(textPart).min(1)])
const name = maybe(z.string())

const toolCall = z.strictObject({
  id: z.string(),
  type: z.literal('function', { error: 'only tool calls of type "function" are supported' }),
  function: z.strictObject({ name: z.string(), arguments: z.string() }),
})

const message = z.discriminatedUnion('role', [
  z.strictObject({ role: z.enum(['system', 'developer', 'user']), content, name }),
  z.strictObject({
    role: z.literal('assistant'),
    content: maybe(content),
    name,
    tool_calls: maybe(z.array(toolCall).min(1)),
    refusal: maybe(z.string()),
    audio: refused('audio is not supported'),
    function_call: refused('function_call is out of date: give tool_calls'),
    annotations: maybe(z.unknown()),
    reasoning_content: maybe(z.string()),
  }),
  z.strictObject({ role: z.literal('tool'), content, tool_call_id: z.string() }),
])

export const functionTool = z.strictObject({
  type: z.literal('function', { error: 'only tools of type "function" are supported' }),
  function: z.strictObject({
    name: z.string().regex(/^[\w-]{1,64}$/, 'must be 1 to 64 letters, digits, _ or -'),
    description: maybe(z.string()),
    parameters: maybe(jsonObject),
    strict: maybe(z.boolean()),
  }),
})
export type FunctionTool = z.infer<typeof functionTool>

const toolChoice = z.union([
  z.enum(['none', 'auto', 'required']),
  z.strictObject({ type: z.literal('function'), function: z.strictObject({ name: z.string() }) }),
])
export type ToolChoice = z.infer<typeof toolChoice>

const responseFormat = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('text') }),
  z.strictObject({ type: z.literal('json_object') }),
  z.strictObject({
    type: z.literal('json_schema'),
    json_schema: z.strictObject({
      name: z.string().regex(/^[\w-]{1,64}$/, 'must be 1 to 64 letters, digits, _ or -'),
      description: maybe(z.string()),
      schema: jsonObject,
      strict: maybe(z.boolean()),
    }),
  }),
])

export const chatSchema = z.strictObject({
  ...samplingFields,
  messages: z.array(message).min(1).max(maxMessages),
  max_completion_tokens: maybe(z.int().min(1)),
  logprobs: maybe(z.boolean()),
  top_logprobs: maybe(z.int().min(0).max(maxTopLogprobs)),
  response_format: maybe(responseFormat),
  tools: maybe(z.array(functionTool).max(maxTools)),
  tool_choice: maybe(toolChoice),
  parallel_tool_calls: maybe(z.boolean()),
  prediction: maybe(z.unknown()), // a hint for speed
  modalities: refused('only text is answered', (value) => JSON.stringify(value) === '["text"]'),
  audio: refused('audio is not supported'),
  functions: refused('functions is out of date: give tools'),
  function_call: refused('function_call is out of date: give tool_choice'),
  reasoning_effort: refused('reasoning_effort is not supported by this model', (value) => value === 'none'),
  verbosity: refused('verbosity is not supported: say it in the prompt', (value) => value === 'medium'),
  web_search_options: refused('there is no web search here'),
  moderation: refused('there is no moderation here'),
  store: refused('completions are not stored here', (value) => value === false),
})

export type ChatBody = z.infer<typeof chatSchema>

const textOf = (value: z.infer<typeof content> | null | undefined): string =>
  typeof value === 'string' ? value : (value ?? []).map(({ text }) => text).join('')

/** Messages with plain text, and the arguments of calls as values, which is what templates print. */
export function toTemplateMessages(messages: ChatBody['messages']): ChatMessage[] {
  return messages.map((given, i): ChatMessage => {
    const text = textOf(given.content)
    if (given.role === 'developer') return { role: 'system', content: text }
    if (given.role !== 'assistant') return { ...given, content: text }
    if (!given.tool_calls) {
      if (given.content === null || given.content === undefined)
        throw badRequest(`messages[${i}] has neither content nor tool_calls`, `messages[${i}].content`)
      return { role: 'assistant', content: text }
    }
    return {
      role: 'assistant',
      content: text,
      tool_calls: given.tool_calls.map(({ id, function: call }, k) => ({
        id,
        type: 'function',
        function: { name: call.name, arguments: parseArguments(call.arguments, `messages[${i}].tool_calls[${k}]`) },
      })),
    }
  })
}

function parseArguments(text: string, place: string): unknown {
  try {
    const value: unknown = JSON.parse(text === '' ? '{}' : text)
    if (jsonObject.safeParse(value).success) return value
  } catch {}
  throw badRequest(`${place}.function.arguments must be a JSON object in a string`, `${place}.function.arguments`)
}
