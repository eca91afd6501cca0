// Requests to token ids: conversations through the chat template, texts as they are; and whether they fit.
import type { ChatMessage } from '../../data/index.js'
import type { ChatBody, FunctionTool } from './chat-schema.js'
import { toTemplateMessages } from './chat-schema.js'
import type { ServerContext } from './context.js'
import { badRequest } from './errors.js'
import type { CompletionBody } from './schemas.js'

/** A conversation as ids; `opening` is what the answer begins with. @throws ApiError 400 */
export function chatPrompt(
  { model }: ServerContext,
  body: ChatBody,
  tools: readonly FunctionTool[],
  opening: string,
): Int32Array {
  const { template, tokenizer } = model
  if (!template)
    throw badRequest(`${model.name} has no chat template; use /v1/completions`, 'model', 'chat_template_missing')
  const messages = toTemplateMessages(body.messages)
  const render = (list: readonly ChatMessage[], given: readonly FunctionTool[]): string => {
    try {
      return template.render(list, { addGenerationPrompt: true, ...(given.length > 0 ? { tools: given } : {}) })
    } catch (error) {
      throw badRequest((error as Error).message, 'messages')
    }
  }
  const text = render(messages, tools)
  if (tools.length > 0 && text === render(messages, []))
    throw badRequest(
      'the chat template of this model does not render tools, so it would never see them; describe them in a message, or use another base',
      'tools',
      'tools_not_supported',
    )
  const at = messages.findIndex((message) => message.tool_calls !== undefined)
  if (at >= 0) {
    const without = messages.map(({ tool_calls: _, ...message }): ChatMessage => message as ChatMessage)
    if (text === render(without, tools))
      throw badRequest(
        'the chat template of this model does not render tool_calls, so it would never see them',
        `messages[${at}].tool_calls`,
        'tools_not_supported',
      )
  }
  return tokenizer.encode(text + opening)
}

/** The prompts of a completion as ids. @throws ApiError 400 */
export function textPrompts({ model }: ServerContext, { prompt }: CompletionBody): ArrayLike<number>[] {
  const { tokenizer } = model
  const list: (string | number[])[] =
    typeof prompt === 'string' ? [prompt] : typeof prompt[0] === 'number' ? [prompt as number[]] : (prompt as string[])
  return list.map((one) => {
    if (typeof one === 'string') return [...tokenizer.prefixIds, ...tokenizer.encode(one)]
    const wrong = one.find((id) => id >= tokenizer.vocabSize)
    if (wrong !== undefined)
      throw badRequest(`prompt: token ${wrong} is not among the ${tokenizer.vocabSize} there are`, 'prompt')
    return one
  })
}

/** How many tokens may be generated after a prompt. @throws ApiError 400 where prompt and answer do not fit */
export function roomFor(
  { model, limits }: ServerContext,
  promptTokens: number,
  maxTokens: number | undefined,
  param: string,
): number {
  const context = model.engine.maxSequenceTokens
  const code = 'context_length_exceeded'
  if (promptTokens === 0) throw badRequest('the prompt is empty: give at least one token', param)
  const maxPrompt = Math.min(context - 1, limits.maxPromptTokens ?? context)
  if (promptTokens > maxPrompt)
    throw badRequest(`the prompt has ${promptTokens} tokens; this server takes ${maxPrompt}`, param, code)
  const room = context - promptTokens
  if (maxTokens !== undefined && maxTokens > room)
    throw badRequest(
      `the context has ${context} tokens; the prompt has ${promptTokens} and the answer may have ${maxTokens}, which is ${maxTokens - room} too many`,
      'max_tokens',
      code,
    )
  return maxTokens ?? room
}
