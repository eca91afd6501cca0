// Text in and out of a tiny model: streams, batches, stop strings, whole characters, adapters, scores and embeddings.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { GeneratedToken, LanguageModel, TokenStream } from '../../src/inference/index.js'
import { streamText } from '../../src/inference/text.js'
import { openTinyModel, writeTinyAdapter } from './tiny-model.js'

let folder: string
let model: LanguageModel
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-model-'))
  model = await openTinyModel(folder)
  await model.loadAdapter('other', writeTinyAdapter(model.dir, join(folder, 'adapter')))
})
afterAll(async () => {
  await model.close()
  rmSync(folder, { recursive: true, force: true })
})

const sampled = { temperature: 1, seed: 2, maxNewTokens: 24, raw: true } as const

/** A stream of given bytes, as an engine would give them. */
function streamOf(bytes: Uint8Array): TokenStream {
  return {
    finished: Promise.resolve('length'),
    cachedTokens: 0,
    cancel() {},
    async *[Symbol.asyncIterator](): AsyncGenerator<GeneratedToken> {
      for (const byte of bytes) yield { id: idOfByte(byte), logp: -1 }
    },
  }
}

describe('generate', () => {
  it('streams the text of its result, with every token once', async () => {
    const stream = model.generate('red green', sampled)
    let text = ''
    const ids: number[] = []
    for await (const chunk of stream) {
      text += chunk.text
      ids.push(...chunk.tokens.map(({ id }) => id))
    }
    const result = await stream.result
    expect(text).toBe(result.text)
    expect(ids).toEqual(result.tokenIds)
    expect(result).toMatchObject({ promptTokens: 9, cachedTokens: 0, finishReason: 'length' })
    expect(result.logps).toHaveLength(24)
    // the same without iterating
    expect((await model.generate('red green', sampled).result).tokenIds).toEqual(ids)
  })

  it('gives log-probabilities that scoring agrees with', async () => {
    const { tokenIds, logps } = await model.generate('red green', sampled).result
    const prompt = model.encodePrompt('red green', { raw: true })
    const [scored] = await model.logps([{ inputIds: [...prompt, ...tokenIds] }])
    for (const [i, logp] of logps.entries()) expect(scored!.logps[prompt.length + i]).toBeCloseTo(logp, 5)
  })

  it('takes a text as a user message, a raw one as it is, and ids', async () => {
    expect(model.tokenizer.decode(model.encodePrompt('Hi'))).toBe(
      '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n',
    )
    const ids = model.encodePrompt('Hi', { raw: true })
    expect(model.tokenizer.decode(ids)).toBe('Hi')
    expect(model.encodePrompt({ ids })).toEqual(ids)
  })

  it('ends at a stop string that tokens spell out, and counts those tokens', async () => {
    const whole = await model.generate('red green', sampled).result
    const at = 5
    const stop = whole.text.slice(at, at + 3)
    const given: string[] = []
    const stream = model.generate('red green', { ...sampled, stop: [stop] })
    for await (const { text } of stream) given.push(text)
    const result = await stream.result
    const expected = whole.text.slice(0, whole.text.indexOf(stop))
    expect(result).toMatchObject({ text: expected, finishReason: 'stop' })
    expect(given.join('')).toBe(expected)
    expect(whole.tokenIds.slice(0, result.tokenIds.length)).toEqual(result.tokenIds)
    expect(model.tokenizer.decode(result.tokenIds)).toContain(stop)
  })

  it('gives characters whole and drops one that stays incomplete', async () => {
    const bytes = Buffer.from('aé🌳z')
    const parts: string[] = []
    const open = (length: number) =>
      streamText(
        model.tokenizer,
        undefined,
        Promise.resolve({ tokens: streamOf(bytes.subarray(0, length)), promptTokens: 1 }),
      )
    for await (const { text } of open(bytes.length)) parts.push(text)
    expect(parts).toEqual(['a', 'é', '🌳', 'z'])
    expect((await open(5).result).text).toBe('aé')
    expect((await open(5).result).tokenIds).toHaveLength(5)
  })

  it('cancels when the reader leaves, and rejects with the reason of a signal', async () => {
    const stream = model.generate('red', { raw: true })
    for await (const _ of stream) break
    await expect(stream.result).rejects.toThrow(/cancelled/)
    const controller = new AbortController()
    const other = model.generate('red', { raw: true, signal: controller.signal })
    controller.abort(new Error('no more'))
    await expect(other.result).rejects.toThrow('no more')
    await expect(
      (async () => {
        for await (const _ of other);
      })(),
    ).rejects.toThrow('no more')
  })

  it('rejects what cannot be a prompt', async () => {
    await expect(model.generate('', { raw: true }).result).rejects.toThrow(/empty prompt/)
    await expect(model.generate('x', { adapter: 'nobody' }).result).rejects.toThrow(/nobody.*loaded are: other/)
  })
})

describe('generateMany', () => {
  it('gives what generate gives, for every prompt and sample', async () => {
    const prompts = ['red', 'green blue', 'one']
    const found = []
    for await (const result of model.generateMany(prompts, { ...sampled, n: 2 })) found.push(result)
    expect(found).toHaveLength(6)
    for (const { index, sample, tokenIds } of found) {
      const seed = sampled.seed + index * 2 + sample
      const alone = await model.generate(prompts[index]!, { ...sampled, seed }).result
      expect(tokenIds).toEqual(alone.tokenIds)
    }
    expect(new Set(found.map(({ index, sample }) => `${index}.${sample}`)).size).toBe(6)
  })

  it('draws apart for prompts that are alike', async () => {
    const texts: string[] = []
    for await (const { text } of model.generateMany(Array(4).fill('red'), sampled)) texts.push(text)
    expect(new Set(texts).size).toBe(4)
  })

  it('names the prompt that is too long, and leaves nothing running when left early', async () => {
    const all = async (prompts: string[]) => {
      for await (const _ of model.generateMany(prompts, { raw: true }));
    }
    await expect(all(['x', 'y'.repeat(600)])).rejects.toThrow(/prompt 2.*has 600 tokens/)
    for await (const _ of model.generateMany(['a', 'b'], { raw: true, maxNewTokens: 2 })) break
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect(model.engine.statistics().running).toBe(0)
  })

  it('rejects with the reason of a signal, with one listener for all, and leaves nothing running', async () => {
    const controller = new AbortController()
    const warnings: Error[] = []
    const onWarning = (warning: Error) => void warnings.push(warning)
    process.on('warning', onWarning)
    const reading = (async () => {
      const prompts = Array.from({ length: 20 }, () => 'red')
      for await (const _ of model.generateMany(prompts, { raw: true, maxNewTokens: 200, signal: controller.signal }));
    })()
    setTimeout(() => controller.abort(new Error('that is all')), 20)
    await expect(reading).rejects.toThrow('that is all')
    await new Promise((resolve) => setTimeout(resolve, 50))
    process.off('warning', onWarning)
    expect(warnings).toEqual([])
    expect(model.engine.statistics().running).toBe(0)
  })

  it('gives nothing for nothing', async () => {
    for await (const _ of model.generateMany([])) expect.unreachable()
  })
})

describe('adapters', () => {
  it('are chosen by call, in generation, scores and embeddings', async () => {
    const base = await model.generate('red', sampled).result
    const adapted = await model.generate('red', { ...sampled, adapter: 'other' }).result
    expect(adapted.tokenIds).not.toEqual(base.tokenIds)
    const row = { inputIds: [...model.encodePrompt('red', { raw: true }), ...adapted.tokenIds] }
    const [withIt] = await model.logps([row], { adapter: 'other' })
    for (const [i, logp] of adapted.logps.entries()) expect(withIt!.logps[3 + i]).toBeCloseTo(logp, 5)
    const [without] = await model.logps([row])
    expect(without!.nll).not.toBeCloseTo(withIt!.nll, 2)
    const [a] = await model.embed(['red'])
    const [b] = await model.embed(['red'], { adapter: 'other' })
    expect(a).not.toEqual(b)
  })

  it('serve as the default until they are unloaded', async () => {
    await model.loadAdapter('second', join(folder, 'adapter'))
    model.defaultAdapter = 'second'
    const { tokenIds } = await model.generate('red', sampled).result
    expect(tokenIds).toEqual((await model.generate('red', { ...sampled, adapter: 'other' }).result).tokenIds)
    model.unloadAdapter('second')
    expect(model.engine.adapters()).toEqual(['other'])
    const plain = await model.generate('red', sampled).result
    expect(plain.tokenIds).toEqual((await model.generate('red', { ...sampled, adapter: null }).result).tokenIds)
  })
})

describe('logps and embed', () => {
  it('score many rows as one at a time', async () => {
    const rows = [
      { text: 'red green' },
      { prompt: 'one ', completion: 'two' },
      { text: 'x'.repeat(400) },
      { text: 'y'.repeat(300) },
    ]
    const together = await model.logps(rows)
    for (const [i, row] of rows.entries()) {
      const alone = await model.score(row)
      expect(together[i]!.nll).toBeCloseTo(alone.nll, 4)
      expect(together[i]!.tokens).toBe(alone.tokens)
    }
    expect(together[1]!.tokens).toBe(3)
    await expect(model.logps([{ text: 'a' }, { txt: 'b' }])).rejects.toThrow(/row 2/)
  })

  it('embed texts as vectors of length 1 that do not depend on their neighbours', async () => {
    const [a, b] = await model.embed(['red green', 'one two three'])
    expect(a!.reduce((sum, x) => sum + x * x, 0)).toBeCloseTo(1, 6)
    expect(a).toHaveLength(64)
    const [alone] = await model.embed(['one two three'])
    for (const [i, x] of b!.entries()) expect(alone![i]).toBeCloseTo(x, 5)
    expect(Math.abs(a![0]! - b![0]!)).toBeGreaterThan(1e-4)
  })
})

function idOfByte(byte: number): number {
  for (let id = 0; id < model.tokenizer.vocabSize; id++) {
    const bytes = model.tokenizer.tokenBytes(id)
    if (bytes.length === 1 && bytes[0] === byte && !model.tokenizer.specialIds.has(id)) return id
  }
  throw new Error(`no token for byte ${byte}`)
}
