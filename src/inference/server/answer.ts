// One request for text, from the queue to the last byte: the same for chat and plain completions, streamed or whole. Every
// choice is a sequence of its own; all of them are cancelled when the client leaves or one of them fails.
import { setMaxListeners } from 'node:events'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { TextOptions } from '../language-model.js'
import type { Generation, GenerationStream, TextChunk } from '../text.js'
import { adapterOf, type ServerContext } from './context.js'
import { badRequest, drainingError, errorBody, toApiError } from './errors.js'
import { choiceSeed } from './sampling.js'
import { ClientGoneError, createEventStream, type EventStream } from './sse.js'

/** A choice that has ended. */
export interface Choice {
  readonly index: number
  readonly generation: Generation
}

/** How a route words its answer. */
export interface Wording {
  /** Events before the text of a choice. */
  begin(index: number): object[]
  piece(index: number, piece: TextChunk): object[]
  /** Events when a choice has ended. */
  end(choice: Choice): object[]
  usage(usage: Usage): object
  whole(choices: readonly Choice[], usage: Usage): object
}

export interface Job {
  /** As the request names it. */
  readonly model: string
  readonly prompts: readonly ArrayLike<number>[]
  /** Choices per prompt. */
  readonly n: number
  readonly seed: number
  /** Options of choice `index`, but for seed and signal. */
  readonly options: (prompt: number) => TextOptions
  readonly isStream: boolean
  readonly includesUsage: boolean
  readonly wording: Wording
}

export interface Usage {
  prompt_tokens: number
  completion_tokens: number
  total_tokens: number
  prompt_tokens_details: { cached_tokens: number }
}

/** The prompt of several choices counts once. */
function usageOf(choices: readonly Choice[], n: number): Usage {
  const firsts = choices.filter(({ index }) => index % n === 0)
  const sum = (list: readonly Choice[], read: (generation: Generation) => number) =>
    list.reduce((total, { generation }) => total + read(generation), 0)
  const prompt = sum(firsts, ({ promptTokens }) => promptTokens)
  const completion = sum(choices, ({ tokens }) => tokens.length)
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: sum(firsts, ({ cachedTokens }) => cachedTokens) },
  }
}

/** The pieces of a choice as they come, timed. */
async function follow(
  stream: GenerationStream,
  context: ServerContext,
  begin: number,
  onPiece: (piece: TextChunk) => Promise<void>,
): Promise<Generation> {
  let first: number | undefined
  let last = 0
  let count = 0
  for await (const piece of stream) {
    last = performance.now()
    if (first === undefined && piece.tokens.length > 0) {
      first = last
      context.metrics.firstToken((first - begin) / 1000)
    }
    count += piece.tokens.length
    await onPiece(piece)
  }
  if (first !== undefined && count > 1) context.metrics.perToken((last - first) / 1000 / (count - 1))
  return stream.result
}

async function generate(
  job: Job,
  context: ServerContext,
  controller: AbortController,
  events: EventStream | null,
): Promise<Choice[]> {
  const begin = performance.now()
  const { wording, n } = job
  const send = async (list: object[]) => {
    for (const event of list) await events?.send(event)
  }
  const release = await context.admission.acquire(job.prompts.length * n, controller.signal)
  try {
    adapterOf(context, job.model) // it may have been unloaded in the meantime
    const streams = context.model.generateEach(
      job.prompts.flatMap((ids, p) =>
        Array.from({ length: n }, (_, k) => ({
          prompt: { ids },
          options: { ...job.options(p), seed: choiceSeed(job.seed, k), signal: controller.signal },
        })),
      ),
    )
    for (const { result } of streams) result.catch(() => {}) // seen through the iteration
    const choices = streams.map(async (stream, index): Promise<Choice> => {
      let hasBegun = false
      const open = async () => {
        if (!hasBegun) await send(wording.begin(index))
        hasBegun = true
      }
      const generation = await follow(stream, context, begin, async (piece) => {
        await open()
        if (events) await send(wording.piece(index, piece))
      })
      await open()
      const choice = { index, generation }
      if (events) await send(wording.end(choice))
      return choice
    })
    try {
      return await Promise.all(choices)
    } catch (error) {
      controller.abort(error)
      await Promise.allSettled(choices)
      throw error
    }
  } finally {
    release()
  }
}

/** Answers a request for text. @throws what the error handler words, as long as nothing was sent */
export async function answer(
  request: FastifyRequest,
  reply: FastifyReply,
  context: ServerContext,
  job: Job,
): Promise<FastifyReply> {
  if (context.isDraining) throw drainingError()
  const choices = job.prompts.length * job.n
  if (choices > context.limits.maxChoices)
    throw badRequest(`${choices} choices in one request; this server gives at most ${context.limits.maxChoices}`, 'n')
  const controller = new AbortController()
  setMaxListeners(0, controller.signal) // every choice listens
  const onClose = () => controller.abort(new ClientGoneError('the client has left'))
  reply.raw.once('close', onClose)
  if (reply.raw.destroyed) onClose()
  context.active.add(controller)
  const events = job.isStream
    ? createEventStream(reply.raw, {
        stallMs: context.limits.stallSeconds * 1000,
        headers: { 'x-request-id': request.id },
      })
    : null
  try {
    const choices = await generate(job, context, controller, events)
    const usage = usageOf(choices, job.n)
    if (!events) return reply.send(job.wording.whole(choices, usage))
    if (job.includesUsage) await events.send(job.wording.usage(usage))
    await events.send('[DONE]')
    events.end()
    return reply.hijack()
  } catch (error) {
    if (reply.raw.destroyed) return reply.hijack()
    if (!events?.isOpen) throw error
    // Too late for a status: the error is the last event.
    const problem = toApiError(error, request.id, context.limits.maxBodyBytes)
    if (problem.status >= 500) request.log.error({ err: error }, 'stream failed')
    await events.send(errorBody(problem)).catch(() => {})
    events.end()
    return reply.hijack()
  } finally {
    context.active.delete(controller)
    reply.raw.off('close', onClose)
  }
}
