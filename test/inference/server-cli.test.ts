// `espalier serve` in a process of its own: what it prints, how signals end it, and that a killed one leaves nothing.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import OpenAI from 'openai'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { build, espalier, root } from '../cli/espalier.js'
import { endId, endless, importTinyChat, saveTinyAdapter } from './server-harness.js'

let folder: string
let base: string
const children = new Set<ChildProcess>()
beforeAll(async () => {
  build()
  folder = mkdtempSync(join(tmpdir(), 'espalier-server-'))
  base = await importTinyChat(folder)
  saveTinyAdapter(base, join(folder, 'polite'), 1)
})
afterEach(() => {
  for (const child of children) child.kill('SIGKILL')
  children.clear()
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

async function serve(args: string[] = [], env: Record<string, string> = {}) {
  const child = spawn(
    process.execPath,
    [join(root, 'bin', 'espalier.mjs'), 'serve', base, '--name', 'tiny', '--json', ...args],
    {
      env: { ...process.env, NO_COLOR: '1', ...env },
    },
  )
  children.add(child)
  const output = { stderr: '' }
  child.stderr.on('data', (chunk) => {
    output.stderr += chunk
  })
  const exited = once(child, 'exit') as Promise<[number | null, string | null]>
  const first = once(createInterface({ input: child.stdout }), 'line') as Promise<[string]>
  const [line] = await Promise.race([
    first,
    exited.then(() => Promise.reject(new Error(`it ended before it listened:\n${output.stderr}`))),
  ])
  const { url, models } = JSON.parse(line) as { url: string; models: string[] }
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: env.ESPALIER_API_KEYS ?? 'none', maxRetries: 0 })
  return { child, output, exited, url, models, client }
}

const long = (model: string) => ({
  model,
  messages: [{ role: 'user' as const, content: 'hi' }],
  max_tokens: 200,
  logit_bias: { [endId]: -100 },
})

describe('serve', () => {
  it('answers, logs one JSON line a request, and drains at SIGTERM', async () => {
    const { child, output, exited, url, models, client } = await serve([
      '--port',
      '0',
      '--adapter',
      `polite=${folder}/polite`,
    ])
    expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/)
    expect(models).toEqual(['tiny', 'polite'])
    const { choices } = await client.chat.completions.create({ ...long('polite'), max_tokens: 3 })
    expect(choices[0]!.finish_reason).toBe('length')
    const stream = await client.chat.completions.create({ ...long('tiny'), stream: true })
    let last: OpenAI.ChatCompletionChunk | undefined
    for await (const event of stream) {
      if (!last) child.kill('SIGTERM')
      last = event
    }
    expect(last!.choices[0]!.finish_reason).toBe('length')
    expect(await exited).toEqual([0, null])
    const lines = output.stderr.split('\n').filter((line) => line.startsWith('{'))
    const requests = lines.map((line) => JSON.parse(line)).filter(({ msg }) => msg === 'request')
    expect(requests.map(({ status }) => status)).toEqual([200, 200])
  })

  it('is ended at once by a second signal', async () => {
    const { child, exited, client } = await serve(['--port', '0', '--log-level', 'silent'])
    const stream = await client.chat.completions.create({ ...long('tiny'), max_tokens: endless, stream: true })
    const reading = (async () => {
      let count = 0
      for await (const _ of stream) if (++count === 1) child.kill('SIGINT')
      return count
    })().catch((error: unknown) => error)
    await new Promise((resolve) => setTimeout(resolve, 500))
    child.kill('SIGINT')
    expect(await exited).toEqual([130, null])
    expect(await reading).toBeInstanceOf(Error)
  })

  it('that is killed leaves nothing behind, and the next one takes its place', async () => {
    const before = readdirSync(folder, { recursive: true }).sort()
    const first = await serve(['--port', '0'])
    const stream = await first.client.chat.completions.create({ ...long('tiny'), max_tokens: endless, stream: true })
    await stream[Symbol.asyncIterator]().next()
    first.child.kill('SIGKILL')
    expect(await first.exited).toEqual([null, 'SIGKILL'])
    const second = await serve(['--port', new URL(first.url).port])
    expect((await second.client.models.list()).data).toHaveLength(1)
    second.child.kill('SIGTERM')
    expect(await second.exited).toEqual([0, null])
    expect(readdirSync(folder, { recursive: true }).sort()).toEqual(before)
  })

  it('asks for the keys of its environment, and warns where there are none and others can connect', async () => {
    const closed = await serve(['--port', '0'], { ESPALIER_API_KEYS: 'sesame' })
    expect((await closed.client.models.list()).data).toHaveLength(1)
    expect((await fetch(`${closed.url}/v1/models`)).status).toBe(401)
    const open = await serve(['--port', '0', '--host', '0.0.0.0'])
    expect(open.output.stderr).toContain('warning: 0.0.0.0 can be reached from other machines and no API key is set')
    expect(closed.output.stderr).not.toMatch(/warning|sesame/)
  })

  it('says what is wrong', async () => {
    const { url } = await serve(['--port', '0'])
    const taken = await espalier(['serve', base, '--port', new URL(url).port])
    expect(taken.code).toBe(1)
    expect(taken.stderr).toContain('the port is in use; choose another')
    const cases: [string[], number, RegExp][] = [
      [['--adapter', 'polite'], 2, /give a name and a PEFT folder/],
      [['--adapter', `tiny=${folder}/polite`], 2, /this is the name of the base/],
      [['--max-concurrent', '0'], 2, /--max-concurrent must be a whole number of at least 1/],
      [['--port', '99999'], 2, /--port must be at most 65535/],
      [['--allow-adapter-loading', '/nowhere'], 1, /no such folder to load adapters from/],
      [['--adapter', 'x=/nowhere'], 1, /nowhere/],
    ]
    for (const [args, code, message] of cases) {
      const found = await espalier(['serve', base, '--name', 'tiny', ...args])
      expect(found.stderr).toMatch(message)
      expect([found.code, found.stdout]).toEqual([code, ''])
    }
  })
})
