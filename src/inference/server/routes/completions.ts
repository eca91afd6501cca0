// POST /v1/completions: texts or token ids, continued as they are.
import { randomUUID } from 'node:crypto'
import { answer, type Wording } from '../answer.js'
import { adapterOf, type ServerContext } from '../context.js'
import { createCompletionLogprobs } from '../logprobs.js'
import { roomFor, textPrompts } from '../prompts.js'
import { requestSeed, toTextOptions } from '../sampling.js'
import { type CompletionBody, checkSampling, completionSchema, parseBody } from '../schemas.js'
import type { Route } from './route.js'

/** OpenAI's default of this route. */
const defaultMaxTokens = 16

function wordingOf(context: ServerContext, body: CompletionBody): Wording {
  const { tokenizer } = context.model
  const head = {
    id: `cmpl-${randomUUID()}`,
    object: 'text_completion',
    created: Math.floor(Date.now() / 1000),
    model: body.model,
  }
  const hasLogprobs = body.logprobs !== undefined && body.logprobs !== null
  const running = new Map<number, ReturnType<typeof createCompletionLogprobs>>()
  const logprobsOf = (index: number) => {
    if (!running.has(index)) running.set(index, createCompletionLogprobs(tokenizer))
    return running.get(index)!
  }
  const usage = body.stream_options?.include_usage ? { usage: null } : {}
  return {
    begin: () => [],
    piece: (index, { text, tokens }) => {
      const logprobs = hasLogprobs ? logprobsOf(index)(tokens) : null
      return text === '' && !(logprobs && tokens.length > 0)
        ? []
        : [{ ...head, choices: [{ index, text, logprobs, finish_reason: null }], ...usage }]
    },
    end: ({ index, generation: { finishReason } }) => [
      { ...head, choices: [{ index, text: '', logprobs: null, finish_reason: finishReason }], ...usage },
    ],
    usage: (usage) => ({ ...head, choices: [], usage }),
    whole: (choices, usage) => ({
      ...head,
      choices: choices.map(({ index, generation: { text, tokens, finishReason } }) => ({
        index,
        text,
        logprobs: hasLogprobs ? logprobsOf(index)(tokens) : null,
        finish_reason: finishReason,
      })),
      usage,
    }),
  }
}

export const completions: Route = (app, context) => {
  app.post('/v1/completions', async (request, reply) => {
    const body = parseBody(completionSchema, request.body)
    checkSampling(body)
    const adapter = adapterOf(context, body.model)
    const prompts = textPrompts(context, body)
    const maxTokens = body.max_tokens ?? defaultMaxTokens
    const options = {
      ...toTextOptions(body, context.model.tokenizer.vocabSize),
      adapter,
      ...(body.logprobs ? { topLogps: body.logprobs } : {}),
    }
    const rooms = prompts.map((ids) => roomFor(context, ids.length, body.max_tokens ?? undefined, 'prompt'))
    return answer(request, reply, context, {
      model: body.model,
      prompts,
      n: body.n ?? 1,
      seed: requestSeed(body),
      options: (p) => ({ ...options, maxNewTokens: Math.min(maxTokens, rooms[p]!) }),
      isStream: body.stream ?? false,
      includesUsage: body.stream_options?.include_usage ?? false,
      wording: wordingOf(context, body),
    })
  })
}
