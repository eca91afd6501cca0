// The oracle itself: its sampling against values worked by hand and against frequencies, and its streams.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openRuntime, type Runtime } from '../../src/runtime/index.js'
import { tinyBase } from '../device/tiny-base.js'
import { chooseToken, editLogits, gumbelNoise, keptThreshold, PlainEngine } from './plain-engine.js'

describe('sampling', () => {
  it('takes penalties and bias from the logits, as worked by hand', () => {
    const edited = editLogits(
      [2, -2, 1, 0.5],
      { prompt: [0, 1], generated: [2, 2] },
      {
        repetitionPenalty: 2,
        frequencyPenalty: 0.1,
        presencePenalty: 0.3,
        logitBias: new Map([[3, 1.5]]),
      },
    )
    expect(Array.from(edited, (x) => +x.toFixed(6))).toEqual([1, -4, 0, 2])
  })

  it('keeps equal tokens at every threshold', () => {
    const z = Float64Array.from([0.5, 0.2, 0.2, 0.1].map(Math.log))
    const kept = (options: object) =>
      Array.from(z, (x, id) => (x >= keptThreshold(z, options) ? id : -1)).filter((id) => id >= 0)
    expect(kept({})).toEqual([0, 1, 2, 3])
    expect(kept({ topK: 2 })).toEqual([0, 1, 2])
    expect(kept({ topP: 0.6 })).toEqual([0, 1, 2])
    expect(kept({ topP: 0.4 })).toEqual([0])
    expect(kept({ topP: 0 })).toEqual([0])
    // 0.5 of what top-k left (0.9) is 0.56 of it: the second group is needed for 0.6
    expect(kept({ topK: 2, topP: 0.55 })).toEqual([0])
    expect(kept({ minP: 0.39 })).toEqual([0, 1, 2])
  })

  it('draws with the probabilities of the softmax at its temperature', () => {
    const logits = Float64Array.from([0, 1, 2, -1])
    const weights = Array.from(logits, (x) => Math.exp(x / 0.7))
    const total = weights.reduce((a, b) => a + b)
    const counts = [0, 0, 0, 0]
    const draws = 8000
    for (let seed = 0; seed < draws; seed++) counts[chooseToken(logits, 7, { temperature: 0.7, seed })]!++
    const chi = counts.reduce(
      (sum, n, i) => sum + (n - (draws * weights[i]!) / total) ** 2 / ((draws * weights[i]!) / total),
      0,
    )
    expect(chi).toBeLessThan(16.3) // 0.999 quantile, 3 degrees of freedom
  })

  it('draws other noise for another seed, position and token, also beyond 32 bits and below 0', () => {
    const values = [
      gumbelNoise(1, 5)(9),
      gumbelNoise(2 ** 32 + 1, 5)(9),
      gumbelNoise(-1, 5)(9),
      gumbelNoise(1, 6)(9),
      gumbelNoise(1, 5)(10),
    ]
    expect(new Set(values).size).toBe(5)
    expect(gumbelNoise(1, 5)(9)).toBe(values[0])
  })
})

describe('the plain engine', () => {
  let runtime: Runtime
  let engine: PlainEngine
  beforeAll(async () => {
    runtime = await openRuntime({})
    engine = await PlainEngine.open({ base: tinyBase(runtime), precision: 'strict' })
  })
  afterAll(async () => {
    await engine.close()
    await runtime.close()
  })
  const idsOf = async (stream: AsyncIterable<{ id: number }>) => {
    const ids: number[] = []
    for await (const { id } of stream) ids.push(id)
    return ids
  }

  it('gives a sequence the same tokens alone and among others', async () => {
    const sampling = { temperature: 0.8, seed: 3, maxNewTokens: 10, topLogps: 2 }
    const alone = await idsOf(engine.submit({ promptIds: [5, 6, 7], sampling }))
    const streams = engine.submitMany([
      { promptIds: [9, 1], sampling: { maxNewTokens: 4 } },
      { promptIds: [5, 6, 7], sampling },
    ])
    const [other, same] = await Promise.all(streams.map(idsOf))
    expect(same).toEqual(alone)
    expect(alone).toHaveLength(10)
    expect(other).toHaveLength(4)
    expect(await streams[1]!.finished).toBe('length')
  })

  it('reports the likeliest tokens, of which greedy decoding takes the first', async () => {
    for await (const { id, logp, top } of engine.submit({
      promptIds: [1, 2],
      sampling: { maxNewTokens: 3, topLogps: 3 },
    })) {
      expect(top!.map((choice) => choice.id)[0]).toBe(id)
      expect(top![0]!.logp).toBe(logp)
      expect(top).toHaveLength(3)
    }
  })

  it('ends at a stop token without returning it', async () => {
    const [first, second] = await idsOf(
      engine.submit({ promptIds: [5, 6, 7], sampling: { maxNewTokens: 2, temperature: 1, seed: 4 } }),
    )
    const stream = engine.submit({ promptIds: [5, 6, 7], sampling: { stopIds: [second!], temperature: 1, seed: 4 } })
    expect(await idsOf(stream)).toEqual(first === second ? [] : [first])
    expect(await stream.finished).toBe('stop')
  })

  it('rejects with the reason of an aborted signal, and goes on for others', async () => {
    const controller = new AbortController()
    const stream = engine.submit({ promptIds: [1], signal: controller.signal })
    const other = engine.submit({ promptIds: [2], sampling: { maxNewTokens: 3 } })
    const reading = idsOf(stream)
    controller.abort(new Error('enough'))
    await expect(reading).rejects.toThrow('enough')
    await expect(stream.finished).rejects.toThrow('enough')
    expect(await idsOf(other)).toHaveLength(3)
  })

  it('cancels a sequence whose iteration ends early', async () => {
    const stream = engine.submit({ promptIds: [1, 2, 3] })
    for await (const _ of stream) break
    await expect(stream.finished).rejects.toThrow('cancelled')
    expect(engine.statistics().running).toBe(0)
  })
})
