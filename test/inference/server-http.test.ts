import { connect } from 'node:net'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { CounterRandom } from '../../src/data/index.js'
import type { LanguageModel } from '../../src/inference/index.js'
import type { RunningServer } from '../../src/inference/server/index.js'
import { endId, endless, expectApiError, expectIdle, openTinyServer, post, sendRaw, soon } from './server-harness.js'

const limits = {
  maxBodyBytes: 64 * 1024,
  headersSeconds: 1,
  requestSeconds: 2,
  stallSeconds: 1,
  keepAliveSeconds: 1,
  maxChoices: 4,
}

let model: LanguageModel
let server: RunningServer
let close: (() => Promise<void>) | undefined
beforeAll(async () => {
  ;({ model, server, close } = await openTinyServer({ limits }))
})
afterAll(() => close?.())
afterEach(() => expectIdle(model, server))

const chat = {
  model: 'tiny',
  messages: [{ role: 'user', content: 'hi' }],
  max_tokens: 3,
  seed: 1,
  logit_bias: { [endId]: -100 },
}
const path = '/v1/chat/completions'
const head = (length: number, type = 'application/json') =>
  `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: ${type}\r\ncontent-length: ${length}\r\n\r\n`

/** The one answer in raw HTTP. */
function parseAnswer(text: string): { status: number; body: unknown } {
  const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(text)?.[1])
  return { status, body: JSON.parse(text.slice(text.indexOf('\r\n\r\n') + 4)) }
}

describe('a request that is wrong gets a typed error', () => {
  it.each([
    ['bad JSON', '{"model": "tiny", "messages": [', 400, 'invalid_json'],
    ['no body', '', 400, 'invalid_json'],
    ['a list', '[1, 2]', 400, 'invalid_json'],
    ['null', 'null', 400, 'invalid_json'],
    ['a number', '17', 400, 'invalid_json'],
    ['two values', '{} {}', 400, 'invalid_json'],
    ['a poisoned prototype', '{"model": "tiny", "__proto__": {"n": 3}}', 400, 'invalid_json'],
    ['deep nesting', `{"model": ${'['.repeat(20_000)}${']'.repeat(20_000)}}`, 400, 'invalid_value'],
    [
      'a huge number',
      '{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
      400,
      'invalid_value',
    ],
  ])('%s', async (_, body, status, code) => {
    const answer = await post(server, path, body)
    expect(answer.status).toBe(status)
    expectApiError(answer.json, { code, type: 'invalid_request_error' })
  })

  it.each([
    ['model', 7],
    ['messages', 'hi'],
    ['messages', [{ role: 'narrator', content: 'x' }]],
    ['messages', [{ role: 'user', content: 7 }]],
    ['messages', [null]],
    ['stream', 'yes'],
    ['n', 1.5],
    ['seed', 'x'],
    ['stop', [1]],
    ['stop', ['a', 'b', 'c', 'd', 'e']],
    ['max_tokens', -1],
    ['temperature', '1'],
    ['logit_bias', [1]],
    ['logit_bias', { x: 1 }],
    ['tools', [{ type: 'function' }]],
    ['response_format', 'json'],
  ])('%s: %j', async (field, value) => {
    const answer = await post(server, path, { ...chat, [field]: value })
    expect(answer.status).toBe(400)
    expectApiError(answer.json, { param: expect.stringMatching(new RegExp(`^${field}`)) })
  })

  it('another model', async () => {
    const answer = await post(server, path, { ...chat, model: 'gpt-4' })
    expect(answer.status).toBe(404)
    expectApiError(answer.json, { code: 'model_not_found', param: 'model', type: 'not_found_error' })
  })

  it('a huge body', async () => {
    const answer = await post(server, path, { ...chat, messages: [{ role: 'user', content: 'x'.repeat(100_000) }] })
    expect(answer.status).toBe(413)
    expectApiError(answer.json, { code: 'request_too_large' })
  })

  it('a huge body without a length', async () => {
    const piece = 'x'.repeat(1024)
    const chunks = Array.from({ length: 128 }, () => `400\r\n${piece}\r\n`)
    const found = await sendRaw(server, [
      `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n`,
      ...chunks,
      '0\r\n\r\n',
    ])
    const { status, body } = parseAnswer(found.text)
    expect(status).toBe(413)
    expectApiError(body)
    expect(found.isClosed).toBe(true)
  })

  it.each(['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'nonsense'])(
    'content type %s',
    async (type) => {
      const answer = await post(server, path, JSON.stringify(chat), { 'content-type': type })
      expect(answer.status).toBe(415)
      expectApiError(answer.json, { code: 'unsupported_media_type' })
    },
  )

  it('another path or method', async () => {
    const missing = await post(server, '/v1/embeddings', {})
    expect(missing.status).toBe(404)
    expectApiError(missing.json, { code: 'unknown_url' })
    const wrong = await fetch(server.url + path)
    expect([wrong.status, wrong.headers.get('allow')]).toEqual([405, 'POST'])
    expectApiError(await wrong.json())
    const deleted = await fetch(server.url + path, { method: 'DELETE' })
    expect(deleted.status).toBe(405)
    const odd = await fetch(`${server.url}/v1/models/%ff`)
    expect(odd.status).toBe(400)
    expectApiError(await odd.json())
  })

  it('loading adapters where that is not allowed', async () => {
    const answer = await post(server, '/v1/load_lora_adapter', { lora_name: 'x', lora_path: 'x' })
    expect(answer.status).toBe(404)
    expectApiError(answer.json)
  })
})

describe('what is not HTTP', () => {
  it.each([
    ['noise', ['\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n']],
    ['a bad method', ['FETCH / HTTP/1.1\r\nhost: x\r\n\r\n']],
    ['two lengths', [`POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nabc`]],
    [
      'length and chunks',
      [`POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc`],
    ],
    [
      'a bad chunk',
      [
        `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n`,
      ],
    ],
    ['no host', ['GET /health HTTP/1.1\r\n\r\n']],
  ])('%s gets 400', async (_, parts) => {
    const found = await sendRaw(server, parts)
    const { status, body } = parseAnswer(found.text)
    expect(status).toBe(400)
    expectApiError(body)
    expect(found.isClosed).toBe(true)
  })

  it('headers without end get 431', async () => {
    const found = await sendRaw(server, [`GET /health HTTP/1.1\r\nhost: x\r\n${'x-long: y\r\n'.repeat(4000)}`])
    expect(found.text).toMatch(/^HTTP\/1\.1 431 /)
    expectApiError(parseAnswer(found.text).body, { code: 'bad_http' })
  })

  it('nothing at all is closed', async () => {
    const found = await sendRaw(server, [])
    expect(found.isClosed).toBe(true)
    expect(found.ms).toBeLessThan(10_000)
  })
})

describe('slow clients', () => {
  it.each([
    ['headers', ['POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n', { waitMs: 300 }, 'x-a: b\r\n']],
    ['bodies', [head(1000), '{"model":', { waitMs: 300 }, '"tiny",']],
  ])('with %s that never end get 408', async (_, parts) => {
    const found = await sendRaw(server, parts)
    expect(found.text).toMatch(/^HTTP\/1\.1 408 /)
    expectApiError(parseAnswer(found.text).body, { code: 'bad_http' })
    expect(found.isClosed).toBe(true)
    expect(found.ms).toBeLessThan(10_000)
  })

  it('with a body in many pieces are served', async () => {
    const body = JSON.stringify(chat)
    const pieces = body.match(/.{1,16}/gs)!.flatMap((piece) => [piece, { waitMs: 20 }])
    const found = await sendRaw(server, [
      head(body.length).replace('\r\n\r\n', '\r\nconnection: close\r\n\r\n'),
      ...pieces,
    ])
    expect(parseAnswer(found.text)).toMatchObject({ status: 200, body: { object: 'chat.completion' } })
  })

  it('that leave within headers or body, or close one half, leave nothing', async () => {
    const body = JSON.stringify({ ...chat, max_tokens: endless })
    const whole = head(body.length) + body
    for (const cut of [10, 60, head(body.length).length + 5, whole.length]) {
      await sendRaw(server, [whole.slice(0, cut), { waitMs: 50 }, { end: true }])
      await sendRaw(server, [whole.slice(0, cut)], 100) // gone without a word
    }
    await expectIdle(model, server)
  })

  it('that send several requests at once get as many answers', async () => {
    const body = JSON.stringify(chat)
    const found = await sendRaw(server, [`${head(body.length)}${body}`.repeat(3)])
    expect(found.text.match(/HTTP\/1\.1 200 OK/g)).toHaveLength(3)
  })

  it('that read nothing of a stream are dropped, and their sequences with them', async () => {
    // Pieces of text are small, so many choices with alternatives fill what the kernel keeps for the socket.
    const body = JSON.stringify({ ...chat, max_tokens: 2000, n: 4, logprobs: true, top_logprobs: 20, stream: true })
    const socket = connect({ port: server.port, host: server.host })
    socket.pause()
    const left = async () =>
      Number(/chat.*code="499"\} (\d+)/.exec(await (await fetch(`${server.url}/metrics`)).text())?.[1])
    const before = await left()
    socket.on('error', () => {})
    const closed = new Promise((resolve) => socket.once('close', resolve))
    socket.write(head(body.length) + body)
    await expect.poll(() => server.active, soon).toBe(1)
    await expect.poll(() => server.active, { timeout: 60_000 }).toBe(0)
    await expectIdle(model, server)
    expect(await left()).toBe(before + 1)
    socket.resume()
    await closed
  })
})

it('200 mutations of a request: a typed error or a valid answer', async () => {
  const random = new CounterRandom(11, 'server/mutations')
  const valid = JSON.stringify({
    ...chat,
    n: 2,
    stream: false,
    temperature: 0.7,
    stop: ['zz'],
    logprobs: true,
    metadata: { a: 'b' },
    stream_options: null,
    response_format: { type: 'text' },
  })
  const pieces = [
    '"',
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    'null',
    'true',
    '-1',
    '1e9',
    '""',
    '\\u0000',
    '\ud83d',
    '{}',
    '[[]]',
    'é',
    '9'.repeat(40),
  ]
  const pick = <T>(list: readonly T[]): T => list[random.nextInt(list.length)]!
  const mutate = (text: string): string => {
    const at = random.nextInt(text.length)
    const to = at + random.nextInt(12)
    return pick([
      () => text.slice(0, at) + pick(pieces) + text.slice(at),
      () => text.slice(0, at) + pick(pieces) + text.slice(to),
      () => text.slice(0, at) + text.slice(to),
      () => text.slice(0, at) + text.slice(at, to).repeat(3) + text.slice(to),
      () => text.slice(0, at),
      () => text.replace(pick(['true', 'false', '3', '0.7', '"hi"', '2', '["zz"]', '"user"']), pick(pieces)),
    ])()
  }
  const statuses = new Map<number, number>()
  for (let i = 0; i < 200; i++) {
    let body = valid
    for (let k = random.nextInt(3); k >= 0; k--) body = mutate(body)
    const answer = await post(server, path, body)
    statuses.set(answer.status, (statuses.get(answer.status) ?? 0) + 1)
    if (answer.status === 200) expect(answer.text, body).toMatch(/^(\{"id":"chatcmpl-|data: )/)
    else {
      expect([400, 404, 413], body).toContain(answer.status)
      expectApiError(answer.json)
    }
  }
  expect(statuses.get(200) ?? 0).toBeGreaterThan(0)
  expect(statuses.get(400) ?? 0).toBeGreaterThan(50)
  await expectIdle(model, server)
  expect(server.active).toBe(0)
})
