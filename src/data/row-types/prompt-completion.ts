// Rows of {prompt, completion}: two texts, or two lists of messages that make one conversation; the completion is trained with
// the token that ends it.
import type { ChatMessage } from '../chat-template.js'
import { brief } from '../errors.js'
import { encodeConversation, parseMessages, parseTools } from './messages.js'
import { defineRowType, joined, labelled, prefixFor, suffixFor } from './row-type.js'

type Parsed =
  | { prompt: string; completion: string }
  | { messages: ChatMessage[]; numPromptMessages: number; tools: unknown }

export const promptCompletion = defineRowType<Parsed>({
  name: 'prompt-completion',
  description: '{prompt, completion}: texts or lists of messages, completion trained',
  columns: ['prompt', 'completion'],
  optionalColumns: ['tools'],
  isSupervised: true,
  canSplit: false,
  parse(row, fail) {
    const { prompt, completion } = row
    if (Array.isArray(prompt) && Array.isArray(completion)) {
      const before = parseMessages(prompt, 'prompt', fail)
      const after = parseMessages(completion, 'completion', fail)
      if (!after.some((message) => message.role === 'assistant')) {
        fail('no message of "completion" has the role "assistant", so nothing would be trained')
      }
      return { messages: [...before, ...after], numPromptMessages: before.length, tools: parseTools(row.tools, fail) }
    }
    if (typeof prompt !== 'string')
      fail(`"prompt" must be a string (or, with "completion", a list of messages), not ${brief(prompt)}`)
    if (typeof completion !== 'string') fail(`"completion" must be a string like "prompt", not ${brief(completion)}`)
    if (completion === '') fail('"completion" is empty, so nothing would be trained; remove the row')
    return { prompt: prompt as string, completion: completion as string }
  },
  encode(row, context) {
    if ('messages' in row) {
      return encodeConversation(row, context, (marked) => {
        if (marked.messages.includes(-1)) {
          throw new Error(
            'the chat template does not mark one span per assistant message, so the completion cannot be told from the prompt; use {messages}',
          )
        }
        return marked.messages.map((index) => index >= row.numPromptMessages)
      })
    }
    const { tokenizer } = context
    const prefix = { ids: prefixFor(row.prompt, tokenizer), isTrained: false }
    const suffix = { ids: suffixFor(row.completion, context), isTrained: true }
    if (tokenizer.isByteLevel) {
      // Part by part: the model sees the very prompt that it will be given when it answers.
      const prompt = { ids: tokenizer.encode(row.prompt), isTrained: false }
      return joined([prefix, prompt, { ids: tokenizer.encode(row.completion), isTrained: true }, suffix])
    }
    // A tokenizer that puts a space before each text must see both as one.
    const text = row.prompt + row.completion
    const marked = labelled(tokenizer.encodeMarked(text, [[row.prompt.length, text.length]]))
    const row_ = joined([prefix, { ids: marked.inputIds, isTrained: false }, suffix])
    row_.labels.set(marked.labels, prefix.ids.length)
    return row_
  },
  answerOf(row) {
    const { completion } = row
    return Array.isArray(completion) ? String((completion.at(-1) as ChatMessage).content ?? '') : String(completion)
  },
  withAnswer(row, answer) {
    const { completion } = row
    if (!Array.isArray(completion)) return { ...row, completion: answer }
    return {
      ...row,
      completion: [...completion.slice(0, -1), { ...(completion.at(-1) as ChatMessage), content: answer }],
    }
  },
})
