// Rows of {messages, tools?}: a conversation rendered by the chat template; what the assistant says is trained, with the
// token that ends it.
import type { ChatMessage, ChatTemplate, MarkedText } from '../chat-template.js'
import { brief } from '../errors.js'
import { defineRowType, type EncodeContext, type EncodedRow, labelled } from './row-type.js'

interface Conversation {
  messages: ChatMessage[]
  tools: unknown
}

type Fail = (problem: string) => never

/** Checks a list of messages; `name` is the column that holds it. */
export function parseMessages(value: unknown, name: string, fail: Fail): ChatMessage[] {
  if (!Array.isArray(value) || value.length === 0)
    fail(`"${name}" must be a list of {role, content}, not ${brief(value)}`)
  for (const [i, message] of (value as unknown[]).entries()) {
    if (typeof message !== 'object' || message === null || Array.isArray(message)) {
      fail(`${name}[${i}] must be an object {role, content}, not ${brief(message)}`)
    }
    const { role, content, tool_calls: toolCalls, from } = message as Record<string, unknown>
    if (typeof role !== 'string' || role === '') {
      const hint =
        from === undefined ? '' : '; rename "from" to "role" and "value" to "content" (gpt → assistant, human → user)'
      fail(`${name}[${i}].role must be a non-empty string, not ${brief(role)}${hint}`)
    }
    const callsTools = Array.isArray(toolCalls) && toolCalls.length > 0
    if (typeof content !== 'string' && !(callsTools && (content === null || content === undefined))) {
      fail(`${name}[${i}].content must be a string, not ${brief(content)}`)
    }
  }
  return value as ChatMessage[]
}

/** Tools come as a list or, from datasets that cannot hold mixed types, as JSON in a string. */
export function parseTools(value: unknown, fail: Fail): unknown {
  if (value === null || value === undefined) return null
  let tools = value
  if (typeof value === 'string') {
    try {
      tools = JSON.parse(value)
    } catch {
      fail('"tools" is a string but not JSON; give a list of tool definitions')
    }
  }
  if (!Array.isArray(tools)) fail(`"tools" must be a list of tool definitions, not ${brief(value)}`)
  return (tools as unknown[]).length > 0 ? tools : null
}

export function requireTemplate(context: EncodeContext): ChatTemplate {
  if (context.template) return context.template
  throw new Error(
    'rows of messages need a chat template and this base has none; set `chatTemplate` of the dataset, or use {prompt, completion} rows',
  )
}

/** A conversation with the spans of the messages that `isTrained` picks. */
export function encodeConversation(
  { messages, tools }: Conversation,
  context: EncodeContext,
  pick: (marked: MarkedText) => boolean[],
): EncodedRow {
  const options = { tools, ...(context.templateVariables ? { variables: context.templateVariables } : {}) }
  const marked = requireTemplate(context).renderMarked(messages, options)
  const isPicked = pick(marked)
  // The template writes BOS and EOS itself; nothing is added, so there is never a second BOS.
  return labelled(
    context.tokenizer.encodeMarked(
      marked.text,
      marked.spans.filter((_, i) => isPicked[i]),
    ),
  )
}

export const messages = defineRowType<Conversation>({
  name: 'messages',
  description: '{messages, tools?}: a conversation, assistant messages trained',
  columns: ['messages'],
  optionalColumns: ['tools'],
  isSupervised: true,
  canSplit: false,
  parse(row, fail) {
    const list = parseMessages(row.messages, 'messages', fail)
    if (!list.some((message) => message.role === 'assistant')) {
      fail('no message has the role "assistant", so nothing would be trained; add the answer or remove the row')
    }
    return { messages: list, tools: parseTools(row.tools, fail) }
  },
  encode(row, context) {
    return encodeConversation(row, context, (marked) =>
      marked.spans.map((_, i) => context.assistantTurns === 'all' || i === marked.spans.length - 1),
    )
  },
  answerOf(row) {
    return String((row.messages as ChatMessage[]).at(-1)?.content ?? '')
  },
  withAnswer(row, answer) {
    const list = row.messages as ChatMessage[]
    return { ...row, messages: [...list.slice(0, -1), { ...list.at(-1), content: answer }] }
  },
})
