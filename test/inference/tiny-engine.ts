// Engines over a tiny random model, adapters for it, and ways to read what they give.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll } from 'vitest'
import { Engine, type EngineOptions } from '../../src/inference/engine.js'
import type {
  EngineRequest,
  GeneratedToken,
  SamplingOptions,
  TextEngine,
  TokenStream,
} from '../../src/inference/request.js'
import { layoutAdapter } from '../../src/models/adapter-layout.js'
import { openBase } from '../../src/models/base-directory.js'
import { type LoadedBase, loadBase } from '../../src/models/loaded-base.js'
import { type LoraConfig, loraDefaults } from '../../src/models/lora-config.js'
import { resolveTargets } from '../../src/models/lora-targets.js'
import { saveAdapter } from '../../src/models/peft.js'
import { openRuntime, type RuntimeOptions } from '../../src/runtime/index.js'
import { importTiny } from '../training/tiny-base.js'
import { seeded } from '../training/toy-program.js'

export const folder = mkdtempSync(join(tmpdir(), 'espalier-engine-'))
const closers: (() => Promise<void> | void)[] = []
afterAll(async () => {
  for (const close of closers.reverse()) await close()
  rmSync(folder, { recursive: true, force: true })
})

export async function openTiny(
  options: RuntimeOptions,
  format: 'none' | 'int4' = 'none',
  name = 'llama',
): Promise<LoadedBase> {
  const runtime = await openRuntime(options)
  closers.push(() => runtime.close())
  const base = await loadBase(runtime, openBase(await importTiny(folder, name, format)))
  closers.push(() => base.close())
  return base
}

export async function openEngine(base: LoadedBase, options: Partial<EngineOptions> = {}): Promise<Engine> {
  const engine = await Engine.open({
    base,
    precision: 'strict',
    blocks: 64,
    maxSequenceTokens: 256,
    maxSequences: 16,
    maxAdapters: 0,
    maxRank: 8,
    prefillTokens: 64,
    drafts: null,
    ...options,
  })
  closers.push(() => engine.close())
  return engine
}

/** A PEFT folder with random values, large enough to change what is generated. */
export function writeAdapter(base: LoadedBase, name: string, seed: number, lora: Partial<LoraConfig> = {}): string {
  const config = { ...loraDefaults, rank: 4, alpha: 8, ...lora }
  const layout = layoutAdapter(resolveTargets(config, base.architecture.linears(base.config)), config)
  const random = seeded(seed)
  const values = new Float32Array(layout.length)
  for (const { kind, offset, shape } of layout.tensors)
    for (let i = 0; i < shape.reduce((a, b) => a * b, 1); i++)
      values[offset + i] = kind === 'magnitude' ? 0.5 + random() : 0.4 * (random() - 0.5)
  const dir = join(folder, name)
  saveAdapter(dir, { lora: config, layout, values, baseModel: null })
  return dir
}

export interface Text {
  ids: number[]
  logps: number[]
  tokens: GeneratedToken[]
  reason: string
  cachedTokens: number
}

export async function read(stream: TokenStream): Promise<Text> {
  const tokens: GeneratedToken[] = []
  for await (const token of stream) tokens.push(token)
  const reason = await stream.finished
  const ids = tokens.map(({ id }) => id)
  return { ids, logps: tokens.map(({ logp }) => logp), tokens, reason, cachedTokens: stream.cachedTokens }
}

export const readAll = (engine: TextEngine, requests: readonly EngineRequest[]): Promise<Text[]> =>
  Promise.all(engine.submitMany(requests).map(read))

/** Each request alone, one after another. */
export async function readEach(engine: TextEngine, requests: readonly EngineRequest[]): Promise<Text[]> {
  const texts: Text[] = []
  for (const request of requests) texts.push(await read(engine.submit(request)))
  return texts
}

/** Random prompts with repeated parts, so that something can be looked up. */
export function prompts(count: number, seed: number, length = 60): number[][] {
  const random = seeded(seed)
  return Array.from({ length: count }, () => {
    const part = Array.from({ length: 5 + Math.floor(random() * 8) }, () => Math.floor(random() * 256))
    const ids: number[] = []
    const total = 3 + Math.floor(random() * length)
    while (ids.length < total) ids.push(...(random() < 0.6 ? part : [Math.floor(random() * 256)]))
    return ids.slice(0, total)
  })
}

export const sampled = (promptIds: readonly number[], seed: number, more: SamplingOptions = {}): EngineRequest => ({
  promptIds,
  sampling: { maxNewTokens: 24, temperature: 0.9, topK: 40, topP: 0.95, seed, ...more },
})

/** Greedy and sampled requests, a few with penalties and biases. */
export const mixture = (count: number, seed: number): EngineRequest[] =>
  prompts(count, seed).map((promptIds, i) => {
    if (i % 3 === 0) return { promptIds, sampling: { maxNewTokens: 24 } }
    if (i % 3 === 1) return sampled(promptIds, i, i === 1 ? { minP: 0.5, logitBias: new Map([[7, 2]]) } : {})
    return sampled(promptIds, i, { repetitionPenalty: 1.2, frequencyPenalty: 0.3, presencePenalty: 0.2 })
  })
