// Prompts of stages that sample: read from texts and messages, and given in an order that seed and position decide.
import { expect, it } from 'vitest'
import { createChatTemplate } from '../../src/data/chat-template.js'
import { DataError } from '../../src/data/errors.js'
import {
  PromptLoader,
  type PromptLoaderOptions,
  type ReadPromptsOptions,
  readPrompts,
} from '../../src/data/prompt-loader.js'
import { iterableSource } from '../../src/data/row-source.js'
import { promptCompletion } from '../../src/data/row-types/prompt-completion.js'
import { ignoreIndex, type Row } from '../../src/data/row-types/row-type.js'
import { createTokenizer } from '../../src/data/tokenizer.js'
import { chatMl, toyTemplate, toyTokenizer, toyTokenizerJson } from './toy.js'

const user = { role: 'user', content: 'Hello?' }

function read(rows: Row[], more: Partial<ReadPromptsOptions> = {}) {
  const source = iterableSource('prompts', () => rows)
  return readPrompts({ source, tokenizer: toyTokenizer, template: toyTemplate, maxPromptLength: 64, ...more })
}

const numbered = (count: number): Row[] => Array.from({ length: count }, (_, i) => ({ prompt: `question ${i}` }))

async function loaderOf(count: number, more: Partial<PromptLoaderOptions> = {}): Promise<PromptLoader> {
  const { prompts, hash } = await read(numbered(count))
  return new PromptLoader({ prompts, hash, seed: 1, promptsPerStep: 3, shuffle: true, ...more })
}

/** Texts of the prompts of the next steps. */
const take = (loader: PromptLoader, steps: number): string[][] =>
  Array.from({ length: steps }, () => loader.next().map(({ text }) => text))

it('reads texts and messages, with the row and its place', async () => {
  const rows = [
    { prompt: 'hello ', answer: 4 },
    { prompt: [user] },
    { prompt: [{ role: 'system', content: 's' }, user] },
  ]
  const { prompts, tooLong } = await read(rows)
  expect(tooLong).toBe(0)
  expect(prompts.map(({ text }) => text)).toEqual([
    'hello ',
    '<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n',
    '<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n',
  ])
  for (const { ids, text } of prompts) expect(toyTokenizer.decode(ids)).toBe(text)
  expect(prompts.map(({ row }) => row)).toEqual(rows)
  expect(prompts.map(({ place }) => place)).toEqual([0, 1, 2].map((i) => `prompts row ${i}`))
  expect(prompts.map(({ index }) => index)).toEqual([0, 1, 2])
})

it('gives the very tokens that training has before an answer', async () => {
  const config = { eos_token: '<|im_end|>', bos_token: '<|begin|>', add_bos_token: true }
  const tokenizer = createTokenizer(toyTokenizerJson(['h e', 'l l']), config)
  const template = createChatTemplate(chatMl, tokenizer)
  const rows = [
    { prompt: 'hello ', completion: 'hello' },
    { prompt: '<|begin|>hello', completion: 'hello' },
    { prompt: [user], completion: [{ role: 'assistant', content: 'hello' }] },
  ]
  const { prompts } = await read(rows, { tokenizer, template })
  const context = { tokenizer, template, assistantTurns: 'all', appendEos: true } as const
  for (const [i, row] of rows.entries()) {
    const { inputIds, labels } = promptCompletion.encode(row, 'row', context)
    const length = labels.findIndex((label) => label !== ignoreIndex)
    expect([...prompts[i]!.ids]).toEqual([...inputIds.subarray(0, length)])
  }
})

it('hands tools and variables to the template', async () => {
  const template = createChatTemplate(
    '{% for tool in tools %}{{ tool.name }};{% endfor %}{{ mood }}{{ messages[0].content }}',
    toyTokenizer,
  )
  const more = { template, templateVariables: { mood: 'calm ' } }
  const tools = [{ name: 'add' }, { name: 'halve' }]
  for (const given of [tools, JSON.stringify(tools)]) {
    const { prompts } = await read([{ prompt: [user], tools: given }], more)
    expect(prompts[0]!.text).toBe('add;halve;calm Hello?')
  }
})

it('leaves out prompts that are too long and counts them', async () => {
  const rows = [{ prompt: 'x'.repeat(8) }, { prompt: 'x'.repeat(9) }, { prompt: 'y' }, { prompt: 'x'.repeat(20) }]
  const { prompts, tooLong } = await read(rows, { maxPromptLength: 8 })
  expect(prompts.map(({ ids }) => ids.length)).toEqual([8, 1])
  expect(prompts.map(({ index }) => index)).toEqual([0, 2])
  expect(tooLong).toBe(2)
  expect((await read(rows, { maxRows: 2 })).prompts.length).toBe(2)
  await expect(read(rows.slice(1, 2), { maxPromptLength: 8 })).rejects.toThrow(
    /^prompts: all 1 prompts are longer than maxPromptLength 8; raise it/,
  )
})

it('cuts the beginning of long prompts where that is asked for, and counts them', async () => {
  const rows = [{ prompt: '12345678' }, { prompt: 'abc123456789' }, { prompt: [user] }]
  const { prompts, tooLong, hash } = await read(rows, { maxPromptLength: 8, truncation: 'keepEnd' })
  expect(tooLong).toBe(2)
  expect(prompts.map(({ text }) => text).slice(0, 2)).toEqual(['12345678', '23456789'])
  for (const { ids, text } of prompts) expect([ids.length, toyTokenizer.decode(ids)]).toEqual([8, text])
  // The end, where the answer begins, is whole
  const whole = (await read(rows.slice(2))).prompts[0]!
  expect([...prompts[2]!.ids]).toEqual([...whole.ids.slice(-8)])
  expect(prompts.map(({ row }) => row)).toEqual(rows)
  expect((await read(rows, { maxPromptLength: 9, truncation: 'keepEnd' })).hash).not.toBe(hash)
})

it('names the place and the remedy of rows that cannot be used', async () => {
  const refusing = createChatTemplate("{{ raise_exception('no system message') }}", toyTokenizer)
  const cases: [Row, RegExp, Partial<ReadPromptsOptions>?][] = [
    [{ prompt: '' }, /"prompt" is empty; remove the row/],
    [{}, /"prompt" must be a text or a list of messages, not undefined/],
    [{ prompt: 3 }, /"prompt" must be a text or a list of messages, not 3/],
    [{ prompt: [] }, /"prompt" must be a list of/],
    [{ prompt: [{ from: 'human', value: 'x' }] }, /prompt\[0\]\.role .*rename "from"/],
    [{ prompt: [user] }, /needs a chat template .*set data\.chatTemplate/, { template: undefined }],
    [{ prompt: [user], tools: '{' }, /"tools" is a string but not JSON/],
    [{ prompt: [user] }, /the chat template refuses these messages/, { template: refusing }],
    [[1] as unknown as Row, /a row must be an object with "prompt"/],
  ]
  for (const [row, message, more] of cases) {
    const failed = await read([{ prompt: 'good' }, row], more).catch((error: unknown) => error)
    expect(failed, String(message)).toBeInstanceOf(DataError)
    expect((failed as DataError).message).toMatch(message)
    expect((failed as DataError).place).toBe('prompts row 1')
  }
  await expect(read([])).rejects.toThrow(/^prompts: holds no rows; .*"prompt"/)
  await expect(read(numbered(2), { signal: AbortSignal.abort(new Error('stopped')) })).rejects.toThrow('stopped')
})

it('gives each prompt once per epoch, in an order that the seed decides, in steps across epochs', async () => {
  const loader = await loaderOf(10)
  expect(loader.stepsPerEpoch).toBeCloseTo(10 / 3)
  const steps = take(loader, 20)
  for (const step of steps) expect(step.length).toBe(3)
  expect(loader.epoch).toBe(6)
  const every = numbered(10).map(({ prompt }) => prompt)
  const epochs = Array.from({ length: 6 }, (_, epoch) => steps.flat().slice(10 * epoch, 10 * (epoch + 1)))
  for (const epoch of epochs) expect([...epoch].sort()).toEqual(every)
  expect(new Set(epochs.map((epoch) => epoch.join())).size).toBe(6)
  expect(take(await loaderOf(10), 20)).toEqual(steps)
  expect(take(await loaderOf(10, { seed: 2 }), 20)).not.toEqual(steps)
  // The order of prompts does not hang on how many make a step
  expect(take(await loaderOf(10, { promptsPerStep: 4 }), 15).flat()).toEqual(steps.flat())
  const plain = take(await loaderOf(10, { shuffle: false }), 10).flat()
  expect(plain).toEqual([...every, ...every, ...every])
  // A step of more prompts than there are goes through them again
  const wide = take(await loaderOf(2, { promptsPerStep: 5 }), 2).flat()
  for (let epoch = 0; epoch < 5; epoch++) expect(new Set(wide.slice(2 * epoch, 2 * epoch + 2)).size).toBe(2)
})

it('continues from a saved state, and refuses a damaged or another one', async () => {
  const whole = take(await loaderOf(7), 12)
  for (const stop of [0, 1, 2, 7, 11]) {
    const first = await loaderOf(7)
    take(first, stop)
    const second = await loaderOf(7)
    second.setState(JSON.parse(JSON.stringify(first.getState())))
    expect(second.epoch).toBe(first.epoch)
    expect(take(second, 12 - stop)).toEqual(whole.slice(stop))
  }
  const loader = await loaderOf(7)
  const state = loader.getState() as object
  for (const damaged of [
    undefined,
    null,
    {},
    { ...state, version: 2 },
    { ...state, position: -1 },
    { ...state, position: 0.5 },
  ])
    expect(() => loader.setState(damaged)).toThrow(/damaged; resume from another checkpoint/)
  const others = [
    await loaderOf(8),
    await loaderOf(7, { seed: 2 }),
    await loaderOf(7, { promptsPerStep: 4 }),
    await loaderOf(7, { shuffle: false }),
  ]
  for (const other of others) expect(() => other.setState(state)).toThrow(/not those of the checkpoint; resume with/)
})

it('tells prompts apart that are cut elsewhere, or come from another tokenizer', async () => {
  const hashOf = async (prompts: string[], more: Partial<ReadPromptsOptions> = {}): Promise<string> =>
    (
      await read(
        prompts.map((prompt) => ({ prompt })),
        more,
      )
    ).hash
  const hash = await hashOf(['ab', 'c'])
  expect(await hashOf(['ab', 'c'])).toBe(hash)
  expect(await hashOf(['a', 'bc'])).not.toBe(hash)
  expect(await hashOf(['c', 'ab'])).not.toBe(hash)
  expect(await hashOf(['ab', 'c'], { tokenizer: createTokenizer(toyTokenizerJson(['a b'])) })).not.toBe(hash)
  // What is left out decides nothing
  expect(await hashOf(['ab', 'x'.repeat(99), 'c'])).toBe(hash)
})
