// `espalier annotate` over a tiny model: keys, going on later, exports that train, AI feedback by rule and judge, the simulation.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { json } from 'node:stream/consumers'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CounterRandom } from '../../src/data/index.js'
import { importTiny, words } from '../training/tiny-base.js'
import { build, type CallOptions, espalier, espalierJson } from './espalier.js'

let folder: string
let options: CallOptions
/** Rows of pairs in which the word "red" is the better answer. */
function writePairs(name: string, count: number, seed: number): void {
  const random = new CounterRandom(seed, name)
  const word = () => words[1 + random.nextInt(words.length - 1)]!
  const rows = Array.from({ length: count }, (_, i) => {
    const prompt = `${word()} ${word()} ${i}: `
    return JSON.stringify({ prompt, chosen: `red ${word()}`, rejected: `${word()} ${word()}` })
  })
  writeFileSync(join(folder, name), `${rows.join('\n')}\n`)
}

const recipeOf = (data: object, stage: object = { type: 'reward', maxLength: 64 }) =>
  JSON.stringify({ name: 'tones', base: './base-llama-none', adapter: { rank: 4, alpha: 8 }, data, stage })

beforeAll(async () => {
  build()
  folder = mkdtempSync(join(tmpdir(), 'espalier-annotate-'))
  options = { cwd: folder, env: { ESPALIER_CACHE: join(folder, 'cache') } }
  await importTiny(folder)
  writePairs('train.jsonl', 80, 1)
  writePairs('held.jsonl', 60, 2)
  writeFileSync(join(folder, 'pairs.json'), recipeOf({ train: 'train.jsonl', heldOut: 'held.jsonl' }))
  const prompts = words.map((word) => JSON.stringify({ prompt: `${word} and` }))
  writeFileSync(join(folder, 'prompts.jsonl'), `${prompts.join('\n')}\n`)
  writeFileSync(join(folder, 'prompts.json'), recipeOf({ train: 'prompts.jsonl' }, { type: 'reward' }))
  writeFileSync(join(folder, 'red.ts'), 'export default ({ completion }) => Number(/red/.test(completion))')
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const logOf = (name: string) =>
  readFileSync(join(folder, name), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))

describe('a person', () => {
  it('answers with keys, stops, goes on, and gets rows to train on', async () => {
    const first = await espalier(['annotate', 'pairs.json'], { ...options, input: '1\n2\nt\nu\n' })
    expect(first.code).toBe(0)
    expect(first.stdout).toMatch(/^prompt: .*\n1: .*\n2: .*\n\n/)
    expect(first.stderr).toContain('1 first, 1 second')
    expect(first.stderr).toMatch(/2 new answers, 2 in annotations\/tones.jsonl, 78 pairs left/)
    const again = await espalierJson<object>(['annotate', 'pairs.json', '--json'], { ...options, input: 'b\ns\nq\n' })
    expect(again).toMatchObject({
      added: 2,
      answered: 4,
      left: 76,
      counts: { first: 1, second: 1, bothBad: 1, skip: 1 },
    })
    expect(logOf('annotations/tones.jsonl').map(({ type }) => type)).toEqual([
      'annotations',
      ...['label', 'label', 'label', 'undo', 'label', 'label'],
    ])
    const exported = await espalierJson<object>(
      ['annotate', 'pairs.json', '--export', 'answers.jsonl', '--export-unpaired', 'single.jsonl', '--json'],
      options,
    )
    expect(exported).toMatchObject({
      answers: 4,
      written: [
        { rows: 2, leftOut: 2 },
        { rows: 6, leftOut: 1 },
      ],
    })
    const trained = await espalier(['plan', 'pairs.json', '--set', 'data.train=answers.jsonl'], options)
    expect(trained.stdout).toMatch(/train rows +4 preference from 2 of .*answers.jsonl/)
  })

  it('gets answers to bare prompts sampled, the same ones again', async () => {
    const call = ['annotate', 'prompts.json', '--max-new-tokens', '6', '--log', 'sampled.jsonl', '--json']
    const first = await espalierJson<{ answered: number; left: number }>(call, { ...options, input: '1\n1\n' })
    expect(first.answered).toBe(2)
    const again = await espalierJson<{ answered: number; left: number }>(call, { ...options, input: 't\n' })
    expect(again).toMatchObject({ answered: 3, left: first.left - 1 })
  })

  it('is told what to mend', async () => {
    const call = async (...args: string[]) => (await espalier(['annotate', ...args], options)).stderr
    expect(await call()).toContain('name a recipe')
    expect(await call('pairs.json', '--rule', 'none.ts')).toContain('none.ts: no such module')
    expect(await call('pairs.json', '--judge', 'http://127.0.0.1:9/v1')).toContain('--judge-model')
    expect(await call('pairs.json', '--set', 'data.train=annotations/tones.jsonl')).toMatch(/holds nothing to compare/)
    writeFileSync(join(folder, 'notes.txt'), 'mine\n')
    expect(await call('pairs.json', '--log', 'notes.txt')).toContain('notes.txt:1: is no JSON')
    expect(await call('pairs.json', '--export', 'x.jsonl', '--log', 'none.jsonl')).toContain(
      'none.jsonl: cannot be read',
    )
  })
})

describe('AI feedback', () => {
  it('by a rule is marked as such', async () => {
    const call = ['annotate', 'pairs.json', '--rule', 'red.ts', '--log', 'rule.jsonl', '--labels', '20', '--json']
    expect(await espalierJson<object>(call, options)).toMatchObject({ added: 20, left: 60 })
    const answers = logOf('rule.jsonl').slice(1)
    expect(answers).toHaveLength(20)
    for (const { by, first, second, label } of answers) {
      expect(by).toBe('rule:red')
      expect(label).toBe(/red/.test(first) === /red/.test(second) ? 'tie' : /red/.test(first) ? 'first' : 'second')
    }
  })

  it('by a judge asks an endpoint about both answers', async () => {
    const asked: { model: string; messages: { content: string }[] }[] = []
    const server = createServer(async (request, response) => {
      const body = (await json(request)) as (typeof asked)[number]
      asked.push(body)
      const content = /red/.test(body.messages[0]!.content.split('Answer:')[1]!) ? '9' : '2'
      response.end(JSON.stringify({ choices: [{ message: { content } }] }))
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`
    try {
      const judge = ['--judge', endpoint, '--judge-model', 'small']
      const call = ['annotate', 'pairs.json', ...judge, '--log', 'judge.jsonl', '--labels', '5', '--json']
      expect(await espalierJson<object>(call, options)).toMatchObject({ added: 5 })
    } finally {
      server.close()
    }
    expect(asked).toHaveLength(10)
    for (const { by } of logOf('judge.jsonl').slice(1)) expect(by).toBe('judge:small')
  })
})

describe('the simulation', () => {
  it('prints the curve, and figures as JSON', async () => {
    const call = ['annotate', 'pairs.json', '--simulate', '--seeds', '2']
    const result = await espalierJson<Record<string, number>>([...call, '--json'], options)
    expect(result).toMatchObject({ pairs: 80, heldOutPairs: 60, seeds: 2, recipe: 'tones' })
    for (const share of [result.labelShare!, result.randomLabelShare!]) {
      expect(share).toBeGreaterThan(0)
      expect(share).toBeLessThanOrEqual(1)
    }
    const { stdout } = await espalier(call, options)
    expect(stdout).toMatch(/active +[\d.]+ % of the labels \(\d+\)/)
    expect(stdout).toMatch(/ labels +active +random\n/)
    const withoutHeldOut = await espalier(['annotate', 'prompts.json', '--simulate'], options)
    expect(withoutHeldOut.stderr).toContain('give the recipe a held-out split')
  })
})
