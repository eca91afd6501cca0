// The official client against the server over a tiny random model: what a program that speaks to OpenAI sees.
import OpenAI from 'openai'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { CounterRandom } from '../../src/data/index.js'
import type { LanguageModel } from '../../src/inference/index.js'
import type { RunningServer } from '../../src/inference/server/index.js'
import { contextTokens, endId, endless, expectIdle, openTinyServer, soon } from './server-harness.js'

let model: LanguageModel
let server: RunningServer
let client: OpenAI
let close: (() => Promise<void>) | undefined
beforeAll(async () => {
  ;({ model, server, client, close } = await openTinyServer())
})
afterAll(() => close?.())
afterEach(() => expectIdle(model, server))

const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: 'Name a colour.' }]
/** Texts as long as asked for. */
const noEnd = { logit_bias: { [endId]: -100 } }
const chat = { model: 'tiny', messages, max_tokens: 12, seed: 1, ...noEnd }

async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const event of stream) all.push(event)
  return all
}

describe('models', () => {
  it('are listed', async () => {
    const list = await collect(await client.models.list())
    expect(list.map(({ id, object, owned_by }) => ({ id, object, owned_by }))).toEqual([
      { id: 'tiny', object: 'model', owned_by: 'espalier' },
    ])
  })

  it('are shown by name', async () => {
    expect((await client.models.retrieve('tiny')).id).toBe('tiny')
    await expect(client.models.retrieve('org/other')).rejects.toMatchObject({ status: 404, code: 'model_not_found' })
  })
})

describe('chat', () => {
  it('answers whole', async () => {
    const answer = await client.chat.completions.create(chat)
    expect(answer).toMatchObject({ object: 'chat.completion', model: 'tiny' })
    expect(answer.id).toMatch(/^chatcmpl-/)
    const [choice] = answer.choices
    expect(choice).toMatchObject({ index: 0, finish_reason: 'length', logprobs: null, message: { role: 'assistant' } })
    expect(choice!.message.content!.length).toBeGreaterThan(0)
    const promptTokens = '[user]Name a colour.\n[assistant]'.length
    expect(answer.usage).toEqual({
      prompt_tokens: promptTokens,
      completion_tokens: 12,
      total_tokens: promptTokens + 12,
      prompt_tokens_details: { cached_tokens: expect.any(Number) },
    })
  })

  it('streams the same text', async () => {
    const whole = await client.chat.completions.create(chat)
    const events = await collect(
      await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } }),
    )
    const text = events.map(({ choices }) => choices[0]?.delta.content ?? '').join('')
    expect(text).toBe(whole.choices[0]!.message.content)
    expect(events[0]!.choices[0]!.delta).toMatchObject({ role: 'assistant' })
    expect(events.at(-2)!.choices[0]!.finish_reason).toBe('length')
    expect(events.at(-1)).toMatchObject({
      choices: [],
      usage: { prompt_tokens: whole.usage!.prompt_tokens, completion_tokens: 12 },
    })
    expect(events.slice(0, -1).every(({ usage }) => usage === null)).toBe(true)
    expect(new Set(events.map(({ id }) => id)).size).toBe(1)
    const without = await collect(await client.chat.completions.create({ ...chat, stream: true }))
    expect(without.every((event) => !('usage' in event))).toBe(true)
  })

  it('ends a stream with [DONE], each event a line of its own', async () => {
    const response = await fetch(`${server.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...chat, stream: true }),
    })
    expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8')
    const lines = (await response.text()).split('\n\n')
    expect(lines.pop()).toBe('')
    expect(lines.pop()).toBe('data: [DONE]')
    for (const line of lines) expect(JSON.parse(line.replace(/^data: /, ''))).toHaveProperty('choices')
  })

  it('gives n choices, different ones, the same whole and streamed', async () => {
    const whole = await client.chat.completions.create({ ...chat, n: 3 })
    expect(whole.choices.map(({ index }) => index)).toEqual([0, 1, 2])
    const texts = whole.choices.map(({ message }) => message.content)
    expect(new Set(texts).size).toBe(3)
    expect(whole.usage).toMatchObject({ completion_tokens: 36 })
    const streamed = ['', '', '']
    for await (const { choices } of await client.chat.completions.create({ ...chat, n: 3, stream: true }))
      for (const { index, delta } of choices) streamed[index] += delta.content ?? ''
    expect(streamed).toEqual(texts)
    const alone = await client.chat.completions.create(chat)
    expect(alone.choices[0]!.message.content).toBe(texts[0])
  })

  it('finds a prompt again that it has seen, and says so', async () => {
    const content = 'A prompt of some length, so that it fills blocks of the cache. '.repeat(3)
    const ask = async (n: number) =>
      (await client.chat.completions.create({ ...chat, n, messages: [{ role: 'user', content }] })).usage!
    const first = await ask(2)
    expect(first.prompt_tokens_details!.cached_tokens).toBe(0)
    const again = await ask(1)
    expect(again.prompt_tokens).toBe(first.prompt_tokens)
    expect(again.prompt_tokens_details!.cached_tokens).toBeGreaterThan(content.length / 2)
    expect(again.prompt_tokens_details!.cached_tokens).toBeLessThan(again.prompt_tokens)
  })

  it('repeats itself for a seed, and not without', async () => {
    const ask = async (seed: number | undefined) =>
      (await client.chat.completions.create({ ...chat, max_tokens: 24, seed })).choices[0]!.message.content
    expect(await ask(7)).toBe(await ask(7))
    expect(await ask(7)).not.toBe(await ask(8))
    expect(await ask(undefined)).not.toBe(await ask(undefined))
  })

  it('is greedy at temperature 0', async () => {
    const ask = async (seed: number) =>
      (await client.chat.completions.create({ ...chat, temperature: 0, seed })).choices[0]!.message.content
    expect(await ask(1)).toBe(await ask(2))
  })

  it('gives log-probabilities, the same whole and streamed', async () => {
    const asked = { ...chat, logprobs: true, top_logprobs: 3 }
    const { choices } = await client.chat.completions.create(asked)
    const content = choices[0]!.logprobs!.content!
    expect(content).toHaveLength(12)
    for (const { token, logprob, bytes, top_logprobs } of content) {
      expect(logprob).toBeLessThan(0)
      expect(Buffer.from(bytes!).toString()).toBe(token)
      expect(top_logprobs).toHaveLength(3)
      const best = top_logprobs.map((top) => top.logprob)
      expect(best).toEqual([...best].sort((a, b) => b - a))
      expect(best[0]).toBeGreaterThanOrEqual(logprob - 1e-6)
    }
    const events = await collect(await client.chat.completions.create({ ...asked, stream: true }))
    expect(events.flatMap((event) => event.choices[0]?.logprobs?.content ?? [])).toEqual(content)
  })

  it('stops before a stop string', async () => {
    const { choices } = await client.chat.completions.create({ ...chat, max_tokens: 24 })
    const text = choices[0]!.message.content!
    const stop = [...text].slice(6, 8).join('')
    const cut = await client.chat.completions.create({ ...chat, max_tokens: 24, stop: [stop, 'never said'] })
    expect(cut.choices[0]).toMatchObject({
      message: { content: text.slice(0, text.indexOf(stop)) },
      finish_reason: 'stop',
    })
  })

  it('refuses what does not fit the context', async () => {
    const long = [{ role: 'user' as const, content: 'x'.repeat(contextTokens) }]
    await expect(client.chat.completions.create({ ...chat, messages: long })).rejects.toMatchObject({
      status: 400,
      code: 'context_length_exceeded',
      param: 'messages',
    })
    await expect(client.chat.completions.create({ ...chat, max_tokens: contextTokens })).rejects.toMatchObject({
      status: 400,
      code: 'context_length_exceeded',
    })
  })

  it.each([
    [{ temperature: 3 }, 'temperature'],
    [{ n: 0 }, 'n'],
    [{ n: 1000 }, 'n'],
    [{ top_logprobs: 2 }, 'top_logprobs'],
    [{ tool_choice: 'required' }, 'tool_choice'],
    [{ stream_options: { include_usage: true } }, 'stream_options'],
    [{ messages: [] }, 'messages'],
    [
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }] },
      'messages[0].content',
    ],
    [{ messages: [{ role: 'assistant' }] }, 'messages[0].content'],
    [{ reasoning_effort: 'high' }, 'reasoning_effort'],
    [{ logit_bias: { 99999: 1 } }, 'logit_bias'],
    [{ temprature: 1 }, 'temprature'],
    [{ response_format: { type: 'yaml' } }, 'response_format'],
  ])('refuses %j, naming it', async (fields, param) => {
    const error = await client.chat.completions
      .create({ ...chat, ...fields } as never)
      .catch((caught: unknown) => caught)
    expect(error).toBeInstanceOf(OpenAI.BadRequestError)
    expect((error as InstanceType<typeof OpenAI.BadRequestError>).param).toContain(param)
  })

  it('takes what changes nothing', async () => {
    const harmless = { user: 'me', metadata: { a: 'b' }, store: false, service_tier: 'auto', prediction: null }
    expect((await client.chat.completions.create({ ...chat, ...harmless } as typeof chat)).choices).toHaveLength(1)
  })
})

describe('completions', () => {
  const completion = { model: 'tiny', prompt: 'one two', max_tokens: 10, seed: 3, ...noEnd }

  it('continue texts and ids, streamed the same', async () => {
    const answer = await client.completions.create(completion)
    expect(answer).toMatchObject({
      object: 'text_completion',
      choices: [{ index: 0, finish_reason: 'length', logprobs: null }],
      usage: { prompt_tokens: 7, completion_tokens: 10 },
    })
    const ids = Array.from(model.tokenizer.encode('one two'))
    expect((await client.completions.create({ ...completion, prompt: ids as number[] })).choices).toEqual(
      answer.choices,
    )
    const events = await collect(await client.completions.create({ ...completion, stream: true }))
    expect(events.map(({ choices }) => choices[0]!.text).join('')).toBe(answer.choices[0]!.text)
    expect(events.at(-1)!.choices[0]!.finish_reason).toBe('length')
  })

  it('take several prompts, n for each', async () => {
    const answer = await client.completions.create({ ...completion, prompt: ['one two', 'three'], n: 2 })
    expect(answer.choices.map(({ index }) => index)).toEqual([0, 1, 2, 3])
    expect(answer.usage).toMatchObject({ prompt_tokens: 7 + 5, completion_tokens: 40 })
    const alone = await client.completions.create({ ...completion, prompt: 'three' })
    expect(answer.choices[2]!.text).toBe(alone.choices[0]!.text)
  })

  it('give log-probabilities', async () => {
    const { choices } = await client.completions.create({ ...completion, logprobs: 2 })
    const { tokens, token_logprobs, top_logprobs, text_offset } = choices[0]!.logprobs!
    for (const list of [tokens, token_logprobs, top_logprobs, text_offset]) expect(list).toHaveLength(10)
    expect(text_offset![0]).toBe(0)
    expect(text_offset).toEqual([...text_offset!].sort((a, b) => a - b))
  })

  it.each([
    { echo: true },
    { suffix: 'x' },
    { best_of: 3 },
    { prompt: '' },
    { prompt: [] },
    { prompt: [256] },
    { prompt: [1.5] },
  ])('refuse %j', async (fields) => {
    await expect(client.completions.create({ ...completion, ...fields } as never)).rejects.toMatchObject({
      status: 400,
      param: expect.stringMatching(new RegExp(`^${Object.keys(fields)[0]}`)),
    })
  })
})

describe('a client that leaves', () => {
  it('frees its sequences, streamed and whole', async () => {
    const long = { ...chat, max_tokens: endless, n: 2 }
    const stream = await client.chat.completions.create({ ...long, stream: true })
    for await (const _ of stream) {
      expect(model.engine.statistics().running).toBeGreaterThan(0)
      stream.controller.abort()
    }
    await expectIdle(model, server)
    const controller = new AbortController()
    const answer = client.chat.completions.create(long, { signal: controller.signal }).catch((error: unknown) => error)
    await expect.poll(() => model.engine.statistics().running, soon).toBeGreaterThan(0)
    controller.abort()
    expect(await answer).toBeInstanceOf(OpenAI.APIUserAbortError)
    await expectIdle(model, server)
    const metrics = await (await fetch(`${server.url}/metrics`)).text()
    expect(metrics).toMatch(/http_requests_total\{route="\/v1\/chat\/completions",method="POST",code="499"\} 2/)
  })

  it('among others leaves theirs as they are, 40 of them at random moments', async () => {
    const random = new CounterRandom(4, 'server/leaving')
    const undisturbed = (await client.chat.completions.create({ ...chat, max_tokens: 60 })).choices[0]!.message.content
    const staying: Promise<string | null>[] = []
    const leaving: Promise<void>[] = []
    for (let i = 0; i < 40; i++) {
      if (i % 8 === 0)
        staying.push(
          client.chat.completions
            .create({ ...chat, max_tokens: 60 })
            .then(({ choices }) => choices[0]!.message.content),
        )
      const leaver = async () => {
        const request = { ...chat, seed: i, max_tokens: endless, n: 1 + (i % 3) }
        const stream = await client.chat.completions.create({ ...request, stream: true })
        let left = 1 + random.nextInt(40)
        for await (const _ of stream) if (--left === 0) stream.controller.abort()
      }
      leaving.push(leaver())
      await new Promise((resolve) => setTimeout(resolve, random.nextInt(15)))
    }
    await Promise.all(leaving)
    expect(await Promise.all(staying)).toEqual(staying.map(() => undisturbed))
  })
})
