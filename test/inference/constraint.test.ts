// Constrained output: whatever a random model says, it fits; drafts that are taken back leave no trace.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import * as z from 'zod'
import { createConstraint, type LanguageModel, type ResponseFormat } from '../../src/inference/index.js'
import { toyTokenizer } from '../data/toy.js'
import { seeded } from '../training/toy-program.js'
import { openTinyModel } from './tiny-model.js'

const person = z.object({
  name: z.string().regex(/^[a-z]{1,6}$/),
  age: z.int().min(0).max(120),
  tags: z.array(z.enum(['red', 'green', 'blue'])).max(3),
  isHome: z.boolean(),
})

describe('a constraint', () => {
  let folder: string
  let model: LanguageModel
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'espalier-constraint-'))
    model = await openTinyModel(folder)
  })
  afterAll(async () => {
    await model.close()
    rmSync(folder, { recursive: true, force: true })
  })

  const answer = (responseFormat: ResponseFormat, temperature: number, seed: number) =>
    model.generate('red', { raw: true, responseFormat, temperature, seed, maxNewTokens: 300 }).result

  it.each([0, 0.7, 3])('gives JSON that fits a zod type at temperature %d', async (temperature) => {
    for (let seed = 0; seed < 4; seed++) {
      const { text, finishReason } = await answer({ schema: person }, temperature, seed)
      expect(finishReason).toBe('stop')
      person.parse(JSON.parse(text))
    }
  })

  it('gives JSON that fits a plain schema', async () => {
    const schema = {
      type: 'object',
      properties: {
        kind: { const: 'point' },
        x: { type: 'integer' },
        label: { type: ['string', 'null'], maxLength: 5 },
      },
      required: ['kind', 'x', 'label'],
      additionalProperties: false,
    }
    for (let seed = 0; seed < 4; seed++) {
      const { text, finishReason } = await answer({ schema }, 2, seed)
      if (finishReason === 'length') continue // an integer may have any number of digits
      const value = JSON.parse(text)
      expect(value.kind).toBe('point')
      expect(Number.isInteger(value.x)).toBe(true)
      expect(value.label === null || value.label.length <= 5).toBe(true)
    }
  })

  it.each(['[a-c]{2,4}-\\d{3}', '(yes|no|maybe so)', 'é+z?', '"[^"]{0,8}"', '.{3,5}', '[a-zäöü]+\\.'])(
    'gives texts that match /%s/',
    async (source) => {
      for (let seed = 0; seed < 6; seed++) {
        const { text, finishReason } = await answer({ regex: source }, 1.5, seed)
        if (finishReason === 'stop') expect(text).toMatch(new RegExp(`^(?:${source})$`, 'u'))
        else expect(text.length).toBeGreaterThan(50)
      }
    },
  )

  it('takes an expression without flags, and is free for every request', async () => {
    const { text } = await answer({ regex: /[xyz]{3}/ }, 1, 1)
    expect(text).toMatch(/^[xyz]{3}$/)
  })
})

it('decoding over the cache, with drafts, gives the text of decoding without', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'espalier-constraint-'))
  const plain = await openTinyModel(folder)
  const cached = await openTinyModel(mkdtempSync(join(folder, 'cached-')), 'cached')
  try {
    const formats: ResponseFormat[] = [{ schema: person }, { regex: '(abc )+end' }, { regex: '[a-c]{2,4}-\\d{3}' }]
    for (const responseFormat of formats)
      for (const temperature of [0, 1]) {
        const options = { raw: true, responseFormat, temperature, seed: 4, maxNewTokens: 120 }
        // the prompt repeats itself, so that drafts are found
        const prompt = 'abc abc abc abc {"name": "abc", "age": 1'
        const [a, b] = await Promise.all([plain, cached].map((model) => model.generate(prompt, options).result))
        expect(b!.text).toBe(a!.text)
        expect(b!.finishReason).toBe(a!.finishReason)
      }
  } finally {
    await plain.close()
    await cached.close()
    rmSync(folder, { recursive: true, force: true })
  }
})

describe('masks', () => {
  const stop = toyTokenizer.eosId!
  const vocabSize = toyTokenizer.vocabSize
  const create = (format: ResponseFormat) => createConstraint(toyTokenizer, format)
  const allowedIds = (mask: Int32Array | null) =>
    Array.from({ length: vocabSize }, (_, id) => id).filter((id) => mask![id >>> 5]! & (1 << (id & 31)))

  it('never allow special tokens but the end, and that only at the end', async () => {
    const constraint = await create({ regex: 'ab?' })
    const [a, b] = ['a', 'b'].map((text) => toyTokenizer.encode(text)[0]!) as [number, number]
    expect(allowedIds(constraint.allowed())).toEqual([a])
    constraint.accept(a)
    expect(allowedIds(constraint.allowed())).toEqual([stop, b].sort((x, y) => x - y))
    constraint.accept(stop)
    expect(allowedIds(constraint.allowed())).toEqual([stop])
    expect(() => constraint.accept(b)).toThrow(/after the end/)
    constraint.rollback(1)
    constraint.accept(b)
    expect(allowedIds(constraint.allowed())).toEqual([stop])
    expect(() => constraint.accept(a)).toThrow(/does not allow/)
    constraint.free()
  })

  it('allow tokens of several characters where they fit', async () => {
    const constraint = await create({ regex: 'hello|help' })
    const texts = allowedIds(constraint.allowed()).map((id) => toyTokenizer.tokenText(id))
    expect(texts.sort()).toEqual(['h', 'he', 'hell'])
    constraint.free()
  })

  it('are the same after drafts were taken back, and in a fork', async () => {
    const constraint = await create({ schema: person })
    const random = seeded(3)
    const pick = () => {
      const ids = allowedIds(constraint.allowed())
      return ids[Math.floor(random() * ids.length)]!
    }
    const taken: number[] = []
    for (let step = 0; step < 60; step++) {
      const before = allowedIds(constraint.allowed())
      const drafts = Math.floor(random() * 5)
      let accepted = 0
      for (; accepted < drafts; accepted++) {
        const id = pick()
        constraint.accept(id)
        if (id === stop) {
          accepted++
          break
        }
      }
      constraint.rollback(accepted)
      expect(allowedIds(constraint.allowed())).toEqual(before)
      const id = pick()
      if (id === stop) break
      constraint.accept(id)
      taken.push(id)
    }
    const fork = constraint.fork()
    for (const id of taken) fork.accept(id)
    expect(allowedIds(fork.allowed())).toEqual(allowedIds(constraint.allowed()))
    fork.free()
    constraint.free()
  })

  it('are compiled once', async () => {
    const schema = z.object({ list: z.array(z.object({ a: z.string(), b: z.number(), c: z.array(z.string()) })) })
    const [first, second] = await Promise.all([create({ schema }), create({ schema })])
    expect(first.allowed()).toEqual(second.allowed())
    const started = performance.now()
    for (let i = 0; i < 20; i++) (await create({ schema })).free()
    expect((performance.now() - started) / 20).toBeLessThan(20)
    first.free()
    second.free()
  })
})

describe('formats that cannot be compiled', () => {
  const create = (format: unknown) => createConstraint(toyTokenizer, format as ResponseFormat)
  it.each([
    [{ regex: '[ab' }, /not a regular expression/],
    [{ regex: /a/i }, /flags/],
    [{ schema: { type: 'strin' } }, /schema.*cannot be compiled.*strin/],
    [{ schema: 3 }, /zod type or a JSON schema/],
  ])('%j are refused', async (format, message) => {
    await expect(create(format)).rejects.toThrow(message)
    // and the next one still works
    const fine = await create({ regex: 'a' })
    expect(fine.allowed()).not.toBeNull()
    fine.free()
  })
})
