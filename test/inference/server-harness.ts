// A tiny random model with a byte vocabulary and a template that renders tools, and servers over it.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import OpenAI from 'openai'
import { expect } from 'vitest'
import { CounterRandom } from '../../src/data/index.js'
import { type LanguageModel, openModel } from '../../src/inference/index.js'
import { type RunningServer, type ServedModel, type ServeOptions, serve } from '../../src/inference/server/index.js'
import { layoutAdapter } from '../../src/models/adapter-layout.js'
import { openBase } from '../../src/models/base-directory.js'
import { importBase } from '../../src/models/import.js'
import { architectureOf } from '../../src/models/index.js'
import { loraDefaults } from '../../src/models/lora-config.js'
import { resolveTargets } from '../../src/models/lora-targets.js'
import { saveAdapter } from '../../src/models/peft.js'
import { goldenDir } from '../golden/folder.js'

export const template = [
  '{%- if tools %}<tools>{% for tool in tools %}{{ tool.function | tojson }}{% endfor %}</tools>{% endif %}',
  "{%- for message in messages %}[{{ message.role }}]{{ message.content }}{% if message.tool_calls %}{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}{% endif %}{{ '\\n' }}{% endfor %}",
  '{%- if add_generation_prompt %}[assistant]{% endif %}',
].join('')

/** The end token of the tiny model; forbidding it gives texts of a known length. */
export const endId = 0
export const contextTokens = 8192
/** More than is generated while a test looks on. */
export const endless = 8000

/** Imports the tiny model under `folder`, with this chat template or none → its base directory. */
export async function importTinyChat(folder: string, chatTemplate: string | null = template): Promise<string> {
  const source = join(folder, 'source')
  rmSync(source, { recursive: true, force: true })
  mkdirSync(source, { recursive: true })
  const golden = (name: string) => readFileSync(goldenDir('models', 'tiny', 'llama', name))
  for (const name of ['model.safetensors', 'tokenizer.json']) writeFileSync(join(source, name), golden(name))
  const change = (name: string, fields: object) =>
    writeFileSync(join(source, name), JSON.stringify({ ...JSON.parse(golden(name).toString()), ...fields }))
  change('config.json', { max_position_embeddings: contextTokens })
  change('tokenizer_config.json', chatTemplate === null ? {} : { chat_template: chatTemplate })
  const out = join(folder, `base-${chatTemplate === null ? 'plain' : 'chat'}-${Math.random().toString(36).slice(2)}`)
  await importBase({ source, out, format: 'none', name: 'tiny' })
  return out
}

/** A server over the tiny model, in a folder of its own that goes with it. */
export async function openTinyServer(options: Partial<ServeOptions> = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'espalier-server-'))
  const model = await openTestModel(await importTinyChat(folder))
  const server = await start(model, options)
  const close = async () => {
    await server.drain()
    await model.close()
    rmSync(folder, { recursive: true, force: true })
  }
  return { folder, model, server, client: clientOf(server), close }
}

/** Writes a PEFT folder for the tiny base with numbers large enough to change what it says. */
export function saveTinyAdapter(base: string, folder: string, seed: number): string {
  const { config } = openBase(base)
  const lora = { ...loraDefaults, rank: 4, alpha: 8 }
  const layout = layoutAdapter(resolveTargets(lora, architectureOf(config.modelType).linears(config)), {
    useDora: false,
    dropout: 0,
  })
  const random = new CounterRandom(seed, 'server/adapter')
  const values = Float32Array.from({ length: layout.length }, () => (random.nextInt(2001) - 1000) / 4000)
  saveAdapter(folder, { lora, layout, values, baseModel: 'tiny' })
  return folder
}

/** The model as the command line opens it, in strict arithmetic. */
export const openTestModel = (base: string): Promise<LanguageModel> =>
  openModel({ base, precision: 'strict', engine: { cacheBytes: 64 << 20 } })

export const start = (model: ServedModel, options: Partial<ServeOptions> = {}): Promise<RunningServer> =>
  serve({ model, ...options })

/** The model with streams that come to rest after their first chunk until `release` is called. */
export function held(model: LanguageModel): { model: ServedModel; release: () => void } {
  let release!: () => void
  const released = new Promise<void>((resolve) => {
    release = resolve
  })
  const generateEach: LanguageModel['generateEach'] = (requests) =>
    model.generateEach(requests).map((stream) => ({
      result: stream.result,
      cancel: () => stream.cancel(),
      async *[Symbol.asyncIterator]() {
        for await (const chunk of stream) {
          yield chunk
          await released
        }
      },
    }))
  const { name, engine, tokenizer, template } = model
  const loadAdapter: LanguageModel['loadAdapter'] = (...given) => model.loadAdapter(...given)
  const unloadAdapter: LanguageModel['unloadAdapter'] = (...given) => model.unloadAdapter(...given)
  return { model: { name, engine, tokenizer, template, generateEach, loadAdapter, unloadAdapter }, release }
}

export const clientOf = (server: RunningServer, apiKey = 'none') =>
  new OpenAI({ baseURL: `${server.url}/v1`, apiKey, maxRetries: 0 })

/** For what comes at once on a quiet machine. */
export const soon = { timeout: 20_000 }

/** Waits until nothing runs, waits or holds blocks any more; fails when something is left. */
export async function expectIdle(model: ServedModel, server?: RunningServer): Promise<void> {
  const state = () => {
    const { running, waiting, swapped, blocks } = model.engine.statistics()
    return { running, waiting, swapped, blocks: blocks.used, active: server?.active ?? 0 }
  }
  await expect.poll(state, soon).toEqual({ running: 0, waiting: 0, swapped: 0, blocks: 0, active: 0 })
}

export interface RawAnswer {
  readonly status: number
  readonly body: string
}

/** Writes bytes to the server's socket as they are → what came back before it closed or `patienceMs` had passed. */
export function sendRaw(
  server: RunningServer,
  parts: readonly (string | { waitMs: number } | { end: true })[],
  patienceMs = 20_000,
): Promise<{ text: string; isClosed: boolean; ms: number }> {
  const begin = performance.now()
  return new Promise((resolve) => {
    let text = ''
    const socket = connect({ port: server.port, host: server.host, allowHalfOpen: true })
    const finish = (isClosed: boolean) => {
      clearTimeout(timer)
      socket.destroy()
      resolve({ text, isClosed, ms: performance.now() - begin })
    }
    const timer = setTimeout(() => finish(false), patienceMs)
    socket.on('data', (chunk) => {
      text += chunk
    })
    socket.on('error', () => finish(true))
    socket.on('end', () => finish(true))
    socket.on('close', () => finish(true))
    void (async () => {
      for (const part of parts) {
        if (typeof part === 'string') socket.write(part)
        else if ('end' in part) socket.end()
        else await new Promise((done) => setTimeout(done, part.waitMs))
      }
    })()
  })
}

/** An error of the server's, in OpenAI's shape. */
export function expectApiError(body: unknown, expected: object = {}): void {
  expect(body).toEqual({
    error: { message: expect.any(String), type: expect.any(String), param: expectNullOr(), code: expectNullOr() },
  })
  expect((body as { error: object }).error).toMatchObject(expected)
}

const expectNullOr = () => ({
  asymmetricMatch: (value: unknown) => value === null || typeof value === 'string',
  toString: () => 'null or a string',
})

export async function post(server: RunningServer, path: string, body: unknown, headers: Record<string, string> = {}) {
  const response = await fetch(server.url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  })
  const text = await response.text()
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {}
  return { status: response.status, headers: response.headers, text, json: json as never }
}
