// The server under more than it takes: the queue and Retry-After, keys, draining, adapters, metrics.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import OpenAI from 'openai'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { LanguageModel } from '../../src/inference/index.js'
import type { RunningServer, ServeOptions } from '../../src/inference/server/index.js'
import {
  clientOf,
  endId,
  endless,
  expectApiError,
  expectIdle,
  held,
  importTinyChat,
  openTestModel,
  post,
  soon,
  start,
} from './server-harness.js'

let folder: string
let model: LanguageModel
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-server-'))
  model = await openTestModel(await importTinyChat(folder))
})
afterAll(async () => {
  await model?.close()
  rmSync(folder, { recursive: true, force: true })
})

async function withServer(options: Partial<ServeOptions>, work: (server: RunningServer) => Promise<void>) {
  const server = await start(model, options)
  try {
    await work(server)
    await expectIdle(model, server)
  } finally {
    await server.drain()
  }
}

const chat = {
  model: 'tiny',
  messages: [{ role: 'user' as const, content: 'hi' }],
  max_tokens: endless,
  seed: 1,
  logit_bias: { [endId]: -100 },
}
const path = '/v1/chat/completions'

describe('the queue', () => {
  it('refuses what does not fit with 429 and the time to wait, and serves the rest', async () => {
    await withServer({ limits: { maxConcurrent: 1, maxQueue: 2 } }, async (server) => {
      const controller = new AbortController()
      const client = clientOf(server)
      const running = client.chat.completions
        .create(chat, { signal: controller.signal })
        .catch((error: unknown) => error)
      await expect.poll(() => model.engine.statistics().running, soon).toBe(1)
      const short = { ...chat, max_tokens: 2 }
      const waiting = [client.chat.completions.create(short), client.chat.completions.create(short)]
      await expect.poll(() => server.active, soon).toBe(3)
      const refused = await post(server, path, short)
      expect(refused.status).toBe(429)
      expectApiError(refused.json, { type: 'rate_limit_error', code: 'queue_full' })
      const seconds = Number(refused.headers.get('retry-after'))
      expect(Number.isInteger(seconds) && seconds >= 1 && seconds <= 300).toBe(true)
      await expect(client.chat.completions.create(short)).rejects.toBeInstanceOf(OpenAI.RateLimitError)
      const text = await (await fetch(`${server.url}/metrics`)).text()
      expect(text).toContain('espalier_queue_requests 2')
      expect(text).toContain('espalier_admitted_sequences 1')
      controller.abort()
      expect(await running).toBeInstanceOf(OpenAI.APIUserAbortError)
      for (const answer of await Promise.all(waiting)) expect(answer.usage!.completion_tokens).toBe(2)
    })
  })

  it('forgets a client that leaves while it waits', async () => {
    await withServer({ limits: { maxConcurrent: 1, maxQueue: 2 } }, async (server) => {
      const client = clientOf(server)
      const [first, second] = [new AbortController(), new AbortController()]
      const running = client.chat.completions.create(chat, { signal: first.signal }).catch(() => 'left')
      await expect.poll(() => model.engine.statistics().running, soon).toBe(1)
      const waiting = client.chat.completions.create(chat, { signal: second.signal }).catch(() => 'left')
      await expect.poll(() => server.active, soon).toBe(2)
      second.abort()
      expect(await waiting).toBe('left')
      await expect.poll(() => server.active, soon).toBe(1)
      expect(model.engine.statistics().running).toBe(1)
      first.abort()
      await running
    })
  })
})

it('keys are asked for under /v1 and never logged', async () => {
  const lines: string[] = []
  const options: Partial<ServeOptions> = {
    apiKeys: ['sesame-1', 'sesame-2'],
    logLevel: 'trace',
    logStream: { write: (line) => void lines.push(line) },
  }
  await withServer(options, async (server) => {
    for (const key of ['sesame-1', 'sesame-2']) {
      const { data } = await clientOf(server, key).models.list()
      expect(data).toHaveLength(1)
    }
    await expect(clientOf(server, 'sesame-3').models.list()).rejects.toBeInstanceOf(OpenAI.AuthenticationError)
    const missing = await post(server, path, chat)
    expect([missing.status, missing.headers.get('www-authenticate')]).toEqual([401, 'Bearer'])
    expectApiError(missing.json, { code: 'invalid_api_key', type: 'authentication_error' })
    const unknown = await fetch(`${server.url}/v1/nothing`)
    expect(unknown.status).toBe(401) // says nothing of what there is
    expect((await fetch(`${server.url}/health`)).status).toBe(200)
    expect((await fetch(`${server.url}/metrics`)).status).toBe(200)
  })
  const requests = lines.map((line) => JSON.parse(line)).filter(({ msg }) => msg === 'request')
  expect(requests).toHaveLength(7)
  expect(requests[0]).toMatchObject({ method: 'GET', route: '/v1/models', status: 200, ms: expect.any(Number) })
  expect(lines.join('')).not.toContain('sesame')
})

describe('draining', () => {
  it('lets running requests end and refuses new ones', async () => {
    const { model: slow, release } = held(model)
    const server = await start(slow)
    const client = clientOf(server)
    const stream = await client.chat.completions.create({ ...chat, max_tokens: 60, stream: true })
    const events = stream[Symbol.asyncIterator]()
    await events.next()
    expect((await fetch(`${server.url}/health`)).status).toBe(200)
    const drained = server.drain()
    const health = await fetch(`${server.url}/health`)
    expect(health.status).toBe(503)
    expectApiError(await health.json(), { code: 'shutting_down' })
    const refused = await post(server, path, chat)
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([503, '5'])
    expectApiError(refused.json, { type: 'service_unavailable_error' })
    release()
    let last: OpenAI.ChatCompletionChunk | undefined
    for (let next = await events.next(); !next.done; next = await events.next()) last = next.value
    expect(last!.choices[0]!.finish_reason).toBe('length')
    await drained
    await expectIdle(model, server)
    await expect(fetch(`${server.url}/health`)).rejects.toThrow()
  })

  it('ends what has not ended by the deadline, with an error', async () => {
    const server = await start(model, { limits: { drainSeconds: 0.2 } })
    const client = clientOf(server)
    const whole = client.chat.completions.create(chat).catch((error: unknown) => error)
    const stream = await client.chat.completions.create({ ...chat, stream: true })
    const reading = (async () => {
      for await (const _ of stream);
    })().catch((error: unknown) => error)
    const begin = performance.now()
    await server.drain()
    expect(performance.now() - begin).toBeLessThan(5000)
    expect(await whole).toMatchObject({ status: 503, code: 'shutting_down' })
    expect(await reading).toMatchObject({ code: 'shutting_down' })
    await expectIdle(model, server)
  })

  it('does not wait for connections that are idle or half a request', async () => {
    const server = await start(model)
    const { connect } = await import('node:net')
    const sockets = ['', 'POST /v1/completions HTTP/1.1\r\nhost: x\r\n', 'GET /health HTTP/1.1\r\nhost: x\r\n\r\n'].map(
      (text) => {
        const socket = connect({ port: server.port, host: server.host })
        socket.on('error', () => {})
        socket.resume()
        if (text !== '') socket.write(text)
        return new Promise((resolve) => socket.once('close', resolve))
      },
    )
    await new Promise((resolve) => setTimeout(resolve, 100))
    const begin = performance.now()
    await server.drain()
    expect(performance.now() - begin).toBeLessThan(5000)
    await Promise.all(sockets)
  })
})

it('metrics count requests, tokens and times', async () => {
  await withServer({}, async (server) => {
    const before = model.engine.statistics().generatedTokens
    await clientOf(server).chat.completions.create({ ...chat, max_tokens: 5 })
    await post(server, path, '{')
    const response = await fetch(`${server.url}/metrics`)
    expect(response.headers.get('content-type')).toContain('text/plain; version=0.0.4')
    const text = await response.text()
    const value = (name: string) =>
      Number(new RegExp(`^${name.replace(/[{}"]/g, '\\$&')} (\\S+)$`, 'm').exec(text)?.[1])
    expect(value('espalier_http_requests_total{route="/v1/chat/completions",method="POST",code="200"}')).toBe(1)
    expect(value('espalier_http_requests_total{route="/v1/chat/completions",method="POST",code="400"}')).toBe(1)
    expect(value('espalier_generated_tokens_total')).toBe(before + 5)
    expect(value('espalier_time_to_first_token_seconds_count')).toBe(1)
    expect(value('espalier_time_per_token_seconds_count')).toBe(1)
    expect(value('espalier_running_sequences')).toBe(0)
    expect(value('espalier_draft_acceptance')).toBe(0)
    for (const name of ['espalier_cache_blocks', 'nodejs_eventloop_lag_seconds', 'process_resident_memory_bytes'])
      expect(value(name), name).toBeGreaterThanOrEqual(0)
  })
})
