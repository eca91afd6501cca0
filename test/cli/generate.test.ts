// `generate` and `chat` over a tiny model: rows in one batch, schemas, stop texts, lines of conversation.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { writeTinyAdapter } from '../inference/tiny-model.js'
import { importTiny } from '../training/tiny-base.js'
import { build, type CallOptions, espalier } from './espalier.js'

let folder: string
let base: string
let options: CallOptions
beforeAll(async () => {
  build()
  folder = mkdtempSync(join(tmpdir(), 'espalier-generate-'))
  base = await importTiny(folder)
  options = { cwd: folder, env: { ESPALIER_CACHE: join(folder, 'cache') } }
  writeTinyAdapter(base, join(folder, 'adapter'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

interface Line {
  text: string
  tokenIds: number[]
  logps: number[]
  finishReason: string
  top?: { id: number; logp: number }[][]
}

/** Runs `generate` and reads its lines. */
async function lines(args: string[], input = ''): Promise<Line[]> {
  const { code, stdout, stderr } = await espalier(['generate', base, '--json', ...args], { ...options, input })
  if (code !== 0) throw new Error(stderr)
  return stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
}

describe('generate --input', () => {
  const rows = ['{"prompt": "red "}', '{"text": "green blue "}', '', '{"prompt": "one two three "}']

  it('answers rows in their order, each as if it were alone', async () => {
    writeFileSync(join(folder, 'rows.jsonl'), rows.join('\n'))
    const sampling = ['--temperature', '1', '--top-p', '0.9', '--max-new-tokens', '6', '--precision', 'fp32']
    const found = await lines(['--input', 'rows.jsonl', '--n', '2', '--seed', '5', ...sampling])
    expect(found).toHaveLength(6)
    for (const [row, prompt] of ['red ', 'green blue ', 'one two three '].entries())
      for (const sample of [0, 1]) {
        const [alone] = await lines(['--prompt', prompt, '--seed', String(5 + 2 * row + sample), ...sampling])
        const { text, tokenIds, finishReason } = found[2 * row + sample]!
        expect({ text, tokenIds, finishReason }).toEqual({
          text: alone!.text,
          tokenIds: alone!.tokenIds,
          finishReason: alone!.finishReason,
        })
      }
    expect(found[0]!.logps).toHaveLength(found[0]!.tokenIds.length)
  })

  it('reads standard input, and names the row that is wrong', async () => {
    expect(await lines(['--input', '-', '--max-new-tokens', '2'], rows.join('\n'))).toHaveLength(3)
    const { code, stderr } = await espalier(['generate', base, '--input', '-'], { ...options, input: '{"txt": "a"}\n' })
    expect(code).toBe(1)
    expect(stderr).toMatch(/stdin:1.*\{prompt\}, \{messages\} or \{text\}/)
  })

  it('reports the likeliest tokens, and answers otherwise with the adapter', async () => {
    const args = ['--prompt', 'red ', '--max-new-tokens', '4', '--top-logps', '2']
    const [plain] = await lines(args)
    expect(plain!.top!.map((choices) => choices.length)).toEqual(plain!.tokenIds.map(() => 2))
    expect(plain!.top![0]![0]!.id).toBe(plain!.tokenIds[0])
    const [adapted] = await lines([...args, '--adapter', 'adapter'])
    expect(adapted!.logps[0]).not.toBeCloseTo(plain!.logps[0]!, 3)
  })

  it('keeps to a schema, an expression and a stop text', async () => {
    writeFileSync(
      join(folder, 'schema.json'),
      JSON.stringify({
        type: 'object',
        properties: { colour: { enum: ['red', 'green'] }, isNew: { type: 'boolean' } },
        required: ['colour', 'isNew'],
        additionalProperties: false,
      }),
    )
    const sampling = ['--prompt', 'x', '--temperature', '2', '--n', '3']
    for (const { text } of await lines([...sampling, '--schema', 'schema.json'])) {
      const value = JSON.parse(text)
      expect(['red', 'green']).toContain(value.colour)
      expect(typeof value.isNew).toBe('boolean')
    }
    for (const { text } of await lines([...sampling, '--regex', '[a-c]{3}'])) expect(text).toMatch(/^[a-c]{3}$/)
    const [long] = await lines([
      '--prompt',
      'x',
      '--max-new-tokens',
      '12',
      '--regex',
      '[a-z]{12}',
      '--temperature',
      '1',
    ])
    const [cut] = await lines([
      ...['--prompt', 'x', '--max-new-tokens', '12', '--regex', '[a-z]{12}', '--temperature', '1'],
      ...['--stop', long!.text.slice(4, 6)],
    ])
    expect(cut!.text).toBe(long!.text.slice(0, long!.text.indexOf(long!.text.slice(4, 6))))
    expect(cut!.finishReason).toBe('stop')
  })
})

describe('wrong options', () => {
  it.each([
    [['--prompt', 'x', '--input', 'y'], /either --prompt TEXT or --input FILE/],
    [['--prompt', 'x', '--temperature', '-1'], /--temperature is -1; it must be a number from 0/],
    [['--prompt', 'x', '--top-k', '1.5'], /whole number/],
    [['--prompt', 'x', '--n', '0'], /--n is 0/],
    [['--prompt', 'x', '--logit-bias', '4:1'], /ID=NUMBER/],
    [['--prompt', 'x', '--schema', 'nowhere.json'], /nowhere.json: cannot be read/],
  ])('%j', async (args, message) => {
    const { code, stdout, stderr } = await espalier(['generate', 'nowhere', ...args], options)
    expect(stderr).toMatch(message)
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
  })
})

it('chat answers line by line without a terminal', async () => {
  const args = ['chat', base, '--adapter', 'adapter', '--max-new-tokens', '5', '--temperature', '0']
  const { code, stdout, stderr } = await espalier(args, { ...options, input: 'red\n/compare\ngreen\n/quit\nnever\n' })
  expect(code).toBe(0)
  expect(stdout).toMatch(/^[\s\S]*\nbase: [\s\S]*\nadapter: /)
  expect(stderr.match(/tokens\/s/g)).toHaveLength(3)
  expect(stderr).toContain('base and adapter answer')
  expect(stderr).toContain('has no chat template')
})
