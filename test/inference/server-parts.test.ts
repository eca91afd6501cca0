// The parts of the server that need no model: tool calls in text, places and queue, events, keys, seeds, where adapters may lie.
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { type AddressInfo, connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ApiError } from '../../src/inference/server/errors.js'
import { createKeyCheck } from '../../src/inference/server/keys.js'
import { Admission } from '../../src/inference/server/limits.js'
import { confinedAdapter } from '../../src/inference/server/routes/adapters.js'
import { choiceSeed } from '../../src/inference/server/sampling.js'
import { ClientGoneError, createEventStream } from '../../src/inference/server/sse.js'
import { callSchema, createToolCallParser, type ParsedPart } from '../../src/inference/server/tool-calls.js'

const names = new Set(['weather', 'add'])

/** Text and calls, neighbouring texts joined. */
function parse(text: string, pieceLength: number, startsInCall = false): unknown[] {
  const parser = createToolCallParser({ names, startsInCall })
  const parts: ParsedPart[] = []
  for (let at = 0; at < text.length; at += pieceLength) parts.push(...parser.push(text.slice(at, at + pieceLength)))
  parts.push(...parser.end())
  const found: unknown[] = []
  for (const part of parts) {
    if ('call' in part) found.push([part.call.function.name, JSON.parse(part.call.function.arguments)])
    else if (typeof found.at(-1) === 'string') found[found.length - 1] += part.text
    else found.push(part.text)
  }
  return found
}

describe('tool calls', () => {
  const call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
  it.each([
    ['just text, a < b and <tool', ['just text, a < b and <tool']],
    [call, [['weather', { city: 'Köln' }]]],
    [`Let me look.\n${call}`, ['Let me look.', ['weather', { city: 'Köln' }]]],
    [
      `${call}\n<tool_call>{"name":"add","arguments":{"a":1,"b":[2]}}</tool_call>\n`,
      [
        ['weather', { city: 'Köln' }],
        ['add', { a: 1, b: [2] }],
      ],
    ],
    [`${call} and then some`, [['weather', { city: 'Köln' }], 'and then some']],
    // The end token often comes in place of the closing tag
    ['<tool_call>\n{"name": "add", "arguments": {}}', [['add', {}]]],
    ['<tool_call>{"name": "add", "parameters": {"a": 1}}</tool_call>', [['add', { a: 1 }]]],
    // What is no call stays text, to the letter
    [
      '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
      ['<tool_call>{"name": "rm", "arguments": {}}</tool_call>'],
    ],
    ['<tool_call>{"name": "add", "argum', ['<tool_call>{"name": "add", "argum']],
    ['<tool_call></tool_call>', ['<tool_call></tool_call>']],
    ['a  \n b \n', ['a  \n b \n']],
  ])('%j', (text, expected) => {
    for (const pieceLength of [1, 2, 3, 7, 1000])
      expect(parse(text, pieceLength), `by ${pieceLength}`).toEqual(expected)
  })

  it('begin in the prompt where they are forced', () => {
    for (const pieceLength of [1, 5, 100]) {
      expect(parse('{"name":"add","arguments":{"a":1}}', pieceLength, true)).toEqual([['add', { a: 1 }]])
      expect(parse('{"name":"add","argu', pieceLength, true)).toEqual(['{"name":"add","argu'])
    }
  })

  it('go out as soon as they cannot be text, and text as soon as it cannot be a call', () => {
    const parser = createToolCallParser({ names })
    expect(parser.push('one two')).toEqual([{ text: 'one two' }])
    expect(parser.push(' <tool')).toEqual([])
    expect(parser.push('s> three')).toEqual([{ text: ' <tools> three' }])
    expect(parser.push('<tool_call>{"name":"add","arguments":{}}</tool_call>')).toMatchObject([
      { call: { type: 'function', function: { name: 'add', arguments: '{}' } } },
    ])
  })

  it('have a schema whose references still lead to their definitions', () => {
    const parameters = { type: 'object', properties: { x: { $ref: '#/$defs/n' } }, $defs: { n: { type: 'integer' } } }
    const tool = (name: string, given?: Record<string, unknown>) => ({
      type: 'function' as const,
      function: { name, parameters: given },
    })
    expect(callSchema([tool('add', parameters), tool('stop')])).toEqual({
      anyOf: [
        {
          type: 'object',
          properties: { name: { const: 'add' }, arguments: { $ref: '#/$defs/add' } },
          required: ['name', 'arguments'],
          additionalProperties: false,
        },
        {
          type: 'object',
          properties: {
            name: { const: 'stop' },
            arguments: { type: 'object', properties: {}, additionalProperties: false },
          },
          required: ['name', 'arguments'],
          additionalProperties: false,
        },
      ],
      $defs: { add: { ...parameters, properties: { x: { $ref: '#/$defs/add/$defs/n' } } } },
    })
  })
})

describe('admission', () => {
  const forever = new AbortController().signal
  /** Lets promises that can settle do so. */
  const settle = () => new Promise((resolve) => setImmediate(resolve))

  it('is first come, first served, by sequences', async () => {
    const admission = new Admission({ maxConcurrent: 4, maxQueue: 8 })
    const order: string[] = []
    const take = async (name: string, count: number) => {
      const release = await admission.acquire(count, forever)
      order.push(name)
      return release
    }
    const a = await take('a', 3)
    const b = take('b', 2)
    const c = take('c', 1) // would fit, but b was first
    await settle()
    expect([order, admission.running, admission.queued]).toEqual([['a'], 3, 2])
    a()
    a() // twice is once
    const held = [await b, await c]
    expect([order, admission.running, admission.queued]).toEqual([['a', 'b', 'c'], 3, 0])
    for (const release of held) release()
    expect(admission.running).toBe(0)
  })

  it('refuses beyond the queue, with the time until a turn', async () => {
    const admission = new Admission({ maxConcurrent: 1, maxQueue: 1 })
    const first = await admission.acquire(1, forever)
    const second = admission.acquire(1, forever)
    const error = await admission.acquire(1, forever).catch((caught: unknown) => caught)
    expect(error).toBeInstanceOf(ApiError)
    expect(error).toMatchObject({ status: 429, code: 'queue_full', headers: { 'retry-after': '2' } })
    first()
    ;(await second)()
    expect([admission.running, admission.queued]).toEqual([0, 0])
  })

  it('forgets those who leave, and lets the next one in their stead', async () => {
    const admission = new Admission({ maxConcurrent: 2, maxQueue: 8 })
    const first = await admission.acquire(1, forever)
    const controller = new AbortController()
    const wide = admission.acquire(2, controller.signal)
    const narrow = admission.acquire(1, forever)
    controller.abort(new Error('left'))
    await expect(wide).rejects.toThrow('left')
    const release = await narrow
    expect([admission.running, admission.queued]).toEqual([2, 0])
    release()
    first()
    expect(admission.running).toBe(0)
    await expect(admission.acquire(1, AbortSignal.abort(new Error('gone')))).rejects.toThrow('gone')
    expect(admission.running).toBe(0)
  })
})

describe('events', () => {
  /** A server that sends as long as it can, and a client that connects and asks. */
  async function sendForever(stallMs: number, onSocket: (socket: Socket) => void) {
    const found = { sent: 0, mostBuffered: 0, error: undefined as unknown }
    const server = createServer(async (_, response) => {
      const events = createEventStream(response, { stallMs, headers: {} })
      const event = { text: 'x'.repeat(10_000) }
      try {
        for (;;) {
          await events.send(event)
          found.sent++
          found.mostBuffered = Math.max(found.mostBuffered, response.writableLength)
          await new Promise((resolve) => setImmediate(resolve))
        }
      } catch (error) {
        found.error = error
      }
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const socket = connect((server.address() as AddressInfo).port, '127.0.0.1')
    socket.on('error', () => {})
    socket.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n')
    onSocket(socket)
    await expect.poll(() => found.error, { timeout: 20_000 }).toBeInstanceOf(ClientGoneError)
    socket.destroy()
    server.close()
    server.closeAllConnections()
    return found
  }

  it('wait for a client that does not read, hold next to nothing for it, and drop it', async () => {
    const found = await sendForever(300, (socket) => socket.pause())
    expect((found.error as Error).message).toBe('the client has read nothing for 0.3 s')
    expect(found.sent).toBeGreaterThan(3)
    expect(found.mostBuffered).toBeLessThan(200_000)
  })

  it('go on for a slow one, until it leaves', async () => {
    let read = 0
    const found = await sendForever(300, (socket) => {
      socket.on('data', (chunk) => {
        read += chunk.length
        socket.pause()
        setTimeout(() => socket.resume(), 5)
        if (read > 20_000_000) socket.destroy()
      })
    })
    expect((found.error as Error).message).toBe('the client has left')
    expect(found.sent).toBeGreaterThan(1500)
    expect(found.mostBuffered).toBeLessThan(200_000)
  })
})

it('keys open the door, anything else does not', () => {
  const check = createKeyCheck(['first-key', 'second-key'])
  for (const header of ['Bearer first-key', 'bearer second-key']) expect(() => check(header)).not.toThrow()
  for (const header of [
    undefined,
    '',
    'Bearer ',
    'Bearer third-key',
    'first-key',
    'Basic first-key',
    'Bearer first-keys',
  ]) {
    let error: unknown
    try {
      check(header)
    } catch (caught) {
      error = caught
    }
    expect(error, String(header)).toMatchObject({ status: 401, code: 'invalid_api_key' })
    expect((error as Error).message).not.toContain('third-key')
  }
  expect(() => createKeyCheck([])(undefined)).not.toThrow()
})

it('choices have seeds of their own, far from the seeds that people count up', () => {
  for (const seed of [0, 1, 7, 2 ** 31, 2 ** 32 - 1]) expect(choiceSeed(seed, 0)).toBe(seed)
  const seeds = Array.from({ length: 64 }, (_, seed) =>
    Array.from({ length: 16 }, (_, k) => choiceSeed(seed, k)),
  ).flat()
  expect(new Set(seeds).size).toBe(seeds.length)
  for (const seed of [-5, 2 ** 40 + 3, Number.MAX_SAFE_INTEGER]) {
    const found = choiceSeed(seed, 3)
    expect(Number.isInteger(found) && found >= 0 && found < 2 ** 32).toBe(true)
  }
})

describe('adapters are loaded from one folder', () => {
  let root: string
  let folder: string
  const write = (dir: string) => {
    mkdirSync(dir, { recursive: true })
    for (const name of ['adapter_config.json', 'adapter_model.safetensors']) writeFileSync(join(dir, name), 'x')
  }
  beforeAll(() => {
    root = realpathSync(mkdtempSync(join(tmpdir(), 'espalier-adapters-')))
    folder = join(root, 'adapters')
    write(join(folder, 'good'))
    write(join(folder, 'deep', 'er'))
    write(join(folder, '..dots'))
    write(join(root, 'outside'))
    write(join(root, 'adapters-too'))
    symlinkSync(join(root, 'outside'), join(folder, 'link'))
    symlinkSync(join(folder, 'good'), join(folder, 'inner-link'))
    mkdirSync(join(folder, 'leaky'))
    writeFileSync(join(folder, 'leaky', 'adapter_config.json'), 'x')
    symlinkSync(join(root, 'outside', 'adapter_model.safetensors'), join(folder, 'leaky', 'adapter_model.safetensors'))
    mkdirSync(join(folder, 'empty'))
  })
  afterAll(() => rmSync(root, { recursive: true, force: true }))

  it.each([
    ['good', 'good'],
    ['./good', 'good'],
    ['deep/er', 'deep/er'],
    ['deep/../good', 'good'],
    ['inner-link', 'good'],
    ['..dots', '..dots'],
  ])('%s', (path, real) => {
    expect(confinedAdapter(folder, path)).toBe(join(folder, real))
  })

  it('by its whole path too', () => expect(confinedAdapter(folder, join(folder, 'good'))).toBe(join(folder, 'good')))

  it.each([
    '..',
    '.',
    '../outside',
    '../adapters-too',
    'link',
    'leaky',
    'empty',
    'missing',
    '/etc',
    'good\0',
    'good/../../outside',
  ])('not %j', (path) => {
    let error: unknown
    try {
      confinedAdapter(folder, path)
    } catch (caught) {
      error = caught
    }
    expect(error).toMatchObject({ status: 400, param: 'lora_path' })
    expect((error as Error).message).toBe(
      'lora_path must name an adapter in the folder that this server loads adapters from',
    )
  })
})
