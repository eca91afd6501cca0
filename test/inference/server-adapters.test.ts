// Adapters over HTTP: chosen by the model's name, loaded and unloaded where that is allowed, from one folder only.
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { LanguageModel } from '../../src/inference/index.js'
import type { RunningServer } from '../../src/inference/server/index.js'
import {
  clientOf,
  endId,
  endless,
  expectApiError,
  expectIdle,
  importTinyChat,
  openTestModel,
  post,
  saveTinyAdapter,
  start,
} from './server-harness.js'

let folder: string
let model: LanguageModel
let server: RunningServer
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-server-'))
  const base = await importTinyChat(folder)
  model = await openTestModel(base)
  for (const [k, name] of ['one', 'two'].entries()) saveTinyAdapter(base, join(folder, 'adapters', name), k + 1)
  saveTinyAdapter(base, join(folder, 'outside'), 3)
  symlinkSync(join(folder, 'outside'), join(folder, 'adapters', 'link'))
  mkdirSync(join(folder, 'adapters', 'broken'))
  for (const name of ['adapter_config.json', 'adapter_model.safetensors'])
    writeFileSync(join(folder, 'adapters', 'broken', name), '{')
  server = await start(model, { adapterFolder: join(folder, 'adapters') })
})
afterAll(async () => {
  await server?.drain()
  await model?.close()
  rmSync(folder, { recursive: true, force: true })
})

const load = (name: string, path: string) => post(server, '/v1/load_lora_adapter', { lora_name: name, lora_path: path })
const unload = (name: string) => post(server, '/v1/unload_lora_adapter', { lora_name: name })
const names = async () => (await clientOf(server).models.list()).data.map(({ id }) => id)
const say = async (name: string) => {
  const request = { model: name, prompt: 'one two', max_tokens: 16, temperature: 0, logit_bias: { [endId]: -100 } }
  return (await clientOf(server).completions.create(request)).choices[0]!.text
}

describe('adapters', () => {
  it('are loaded, chosen by name beside each other, and unloaded', async () => {
    const base = await say('tiny')
    expect((await load('first', 'one')).text).toBe("Success: LoRA adapter 'first' added successfully.")
    expect((await load('org/second', join(folder, 'adapters', 'two'))).status).toBe(200)
    expect(await names()).toEqual(['tiny', 'first', 'org/second'])
    expect((await clientOf(server).models.retrieve('org/second')).id).toBe('org/second')
    const texts = await Promise.all(['tiny', 'first', 'org/second', 'tiny', 'first'].map(say))
    expect(texts[0]).toBe(base)
    expect(texts[3]).toBe(base)
    expect(texts[4]).toBe(texts[1])
    expect(new Set(texts).size).toBe(3)
    expect((await unload('first')).text).toBe("Success: LoRA adapter 'first' removed successfully.")
    expect((await unload('org/second')).status).toBe(200)
    expect(await names()).toEqual(['tiny'])
    const gone = await post(server, '/v1/completions', { model: 'first', prompt: 'x' })
    expect(gone.status).toBe(404)
    expectApiError(gone.json, { code: 'model_not_found' })
  })

  it('are not unloaded under a request', async () => {
    await load('busy', 'one')
    const client = clientOf(server)
    const request = { model: 'busy', prompt: 'one two', max_tokens: endless, logit_bias: { [endId]: -100 } }
    const stream = await client.completions.create({ ...request, stream: true })
    const events = stream[Symbol.asyncIterator]()
    await events.next()
    const refused = await unload('busy')
    expect(refused.status).toBe(409)
    expectApiError(refused.json, { type: 'conflict_error', code: 'adapter_in_use' })
    stream.controller.abort()
    await expectIdle(model, server)
    expect((await unload('busy')).status).toBe(200)
  })

  it.each([
    ['x', '../outside', 'lora_path'],
    ['x', 'link', 'lora_path'],
    ['x', 'missing', 'lora_path'],
    ['x', 'broken', 'lora_path'],
    ['tiny', 'one', 'lora_name'],
    ['../x', 'one', 'lora_name'],
    ['', 'one', 'lora_name'],
  ])('%s from %s is refused, and nothing is loaded', async (name, path, param) => {
    const answer = await load(name, path)
    expect(answer.status).toBe(400)
    expectApiError(answer.json, { param })
    expect(answer.text).not.toContain(folder)
    expect(await names()).toEqual(['tiny'])
  })

  it('have one name each, and an unknown one is not unloaded', async () => {
    await load('twice', 'one')
    const again = await load('twice', 'two')
    expect(again.status).toBe(400)
    expectApiError(again.json, { param: 'lora_name' })
    await unload('twice')
    const missing = await unload('twice')
    expect(missing.status).toBe(404)
    expectApiError(missing.json, { code: 'model_not_found' })
  })
})
