// POST /v1/chat/completions: conversations through the chat template, with tools and constrained output.
import { randomUUID } from 'node:crypto'
import { ResponseFormatError } from '../../constraint.js'
import type { TextOptions } from '../../language-model.js'
import { answer, type Choice, type Wording } from '../answer.js'
import { type ChatBody, chatSchema, type FunctionTool } from '../chat-schema.js'
import { adapterOf, type ServerContext } from '../context.js'
import { badRequest } from '../errors.js'
import { chatLogprobs } from '../logprobs.js'
import { chatPrompt, roomFor } from '../prompts.js'
import { requestSeed, toTextOptions } from '../sampling.js'
import { checkSampling, parseBody } from '../schemas.js'
import { callOpening, callSchema, createToolCallParser, type ToolCall, type ToolCallParser } from '../tool-calls.js'
import type { Route } from './route.js'

/** The tools that the model sees, and those of which it must call one. */
interface ToolUse {
  readonly tools: readonly FunctionTool[]
  readonly forced: readonly FunctionTool[]
}

function toolUse({ tools, tool_choice: choice, response_format: format }: ChatBody): ToolUse {
  const given = tools ?? []
  const isForced = choice === 'required' || (typeof choice === 'object' && choice !== null)
  if (isForced && given.length === 0)
    throw badRequest('tool_choice asks for a tool and there are no tools', 'tool_choice')
  const names = new Set(given.map(({ function: { name } }) => name))
  if (names.size < given.length) throw badRequest('two tools have the same name', 'tools')
  if (choice === 'none' || given.length === 0) return { tools: [], forced: [] }
  if (format && format.type !== 'text')
    throw badRequest(
      'response_format leaves no way to call a tool: leave out tools, or set tool_choice to "none"',
      'response_format',
    )
  if (!isForced) return { tools: given, forced: [] }
  if (choice === 'required') return { tools: given, forced: given }
  const forced = given.filter(({ function: { name } }) => name === choice.function.name)
  if (forced.length === 0)
    throw badRequest(`tool_choice names ${choice.function.name}, which is not among the tools`, 'tool_choice')
  return { tools: given, forced }
}

function formatOptions({ response_format: format }: ChatBody, forced: readonly FunctionTool[]): Partial<TextOptions> {
  if (forced.length > 0) return { responseFormat: { schema: callSchema(forced) } }
  if (!format || format.type === 'text') return {}
  return { responseFormat: { schema: format.type === 'json_object' ? { type: 'object' } : format.json_schema.schema } }
}

function logprobOptions({ logprobs, top_logprobs: top }: ChatBody): Partial<TextOptions> {
  if (top !== null && top !== undefined && !logprobs)
    throw badRequest('top_logprobs needs logprobs: true', 'top_logprobs')
  return top ? { topLogps: top } : {}
}

/** Text and calls of one choice, as far as they have come. */
interface Progress {
  readonly parser: ToolCallParser | null
  calls: number
}

function wordingOf(context: ServerContext, body: ChatBody, { tools, forced }: ToolUse): Wording {
  const { tokenizer } = context.model
  const head = { id: `chatcmpl-${randomUUID()}`, created: Math.floor(Date.now() / 1000), model: body.model }
  const usage = body.stream_options?.include_usage ? { usage: null } : {}
  const newParser = () => {
    const names = new Set(tools.map(({ function: { name } }) => name))
    return tools.length > 0 ? createToolCallParser({ names, startsInCall: forced.length > 0 }) : null
  }
  const progress = new Map<number, Progress>()
  const event = (
    index: number,
    delta: object,
    rest: { logprobs?: object | null; finish_reason?: string | null } = {},
  ) => ({
    ...head,
    object: 'chat.completion.chunk',
    choices: [{ index, delta, logprobs: null, finish_reason: null, ...rest }],
    ...usage,
  })
  /** Pieces of text and calls as deltas. */
  const deltas = (state: Progress, text: string, isEnd: boolean): object[] => {
    const { parser } = state
    if (!parser) return text === '' ? [] : [{ content: text }]
    const parts = isEnd ? parser.end() : parser.push(text)
    return parts.map((part) =>
      'text' in part ? { content: part.text } : { tool_calls: [{ index: state.calls++, ...part.call }] },
    )
  }

  const message = ({ index, generation: { text, tokens, finishReason } }: Choice) => {
    const parser = newParser()
    const parts = parser ? [...parser.push(text), ...parser.end()] : [{ text }]
    const calls = parts.flatMap((part): ToolCall[] => ('call' in part ? [part.call] : []))
    const content = parts.map((part) => ('text' in part ? part.text : '')).join('')
    return {
      index,
      message: {
        role: 'assistant',
        content: calls.length > 0 && content === '' ? null : content,
        refusal: null,
        ...(calls.length > 0 ? { tool_calls: calls } : {}),
      },
      logprobs: body.logprobs ? chatLogprobs(tokenizer, tokens) : null,
      finish_reason: calls.length > 0 && finishReason === 'stop' ? 'tool_calls' : finishReason,
    }
  }

  return {
    begin: (index) => {
      progress.set(index, { parser: newParser(), calls: 0 })
      return [event(index, { role: 'assistant', content: '' })]
    },
    piece: (index, { text, tokens }) => {
      const found = deltas(progress.get(index)!, text, false)
      const logprobs = body.logprobs && tokens.length > 0 ? chatLogprobs(tokenizer, tokens) : null
      if (found.length === 0) return logprobs ? [event(index, {}, { logprobs })] : []
      return found.map((delta, i) => event(index, delta, i === 0 ? { logprobs } : {}))
    },
    end: ({ index, generation: { finishReason } }) => {
      const state = progress.get(index)!
      const rest = deltas(state, '', true).map((delta) => event(index, delta))
      const reason = state.calls > 0 && finishReason === 'stop' ? 'tool_calls' : finishReason
      return [...rest, event(index, {}, { finish_reason: reason })]
    },
    usage: (usage) => ({ ...head, object: 'chat.completion.chunk', choices: [], usage }),
    whole: (choices, usage) => ({ ...head, object: 'chat.completion', choices: choices.map(message), usage }),
  }
}

export const chatCompletions: Route = (app, context) => {
  app.post('/v1/chat/completions', async (request, reply) => {
    const body = parseBody(chatSchema, request.body)
    checkSampling(body)
    const adapter = adapterOf(context, body.model)
    const use = toolUse(body)
    const ids = chatPrompt(context, body, use.tools, use.forced.length > 0 ? callOpening : '')
    const maxTokens = body.max_completion_tokens ?? body.max_tokens ?? undefined
    const options: TextOptions = {
      ...toTextOptions(body, context.model.tokenizer.vocabSize),
      ...formatOptions(body, use.forced),
      ...logprobOptions(body),
      adapter,
      maxNewTokens: roomFor(context, ids.length, maxTokens, 'messages'),
    }
    const answering = answer(request, reply, context, {
      model: body.model,
      prompts: [ids],
      n: body.n ?? 1,
      seed: requestSeed(body),
      options: () => options,
      isStream: body.stream ?? false,
      includesUsage: body.stream_options?.include_usage ?? false,
      wording: wordingOf(context, body, use),
    })
    return answering.catch((error: unknown) => {
      if (!(error instanceof ResponseFormatError)) throw error
      throw badRequest(error.message, use.forced.length > 0 ? 'tools' : 'response_format', 'invalid_schema')
    })
  })
}
