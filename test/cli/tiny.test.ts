// The commands over a tiny model: import, inspect, plan, run, interrupt and resume, eval, score, generate.
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { goldenDir } from '../golden/folder.js'
import { writeRows } from '../training/tiny-base.js'
import { build, type CallOptions, espalier, espalierJson } from './espalier.js'

interface Scored {
  inputIds: number[]
  logps: (number | null)[]
  nll: number
  tokens: number
  top?: { id: number; logp: number }[]
}

let folder: string
let base: string
let options: CallOptions
let recipe: string
beforeAll(async () => {
  build()
  folder = mkdtempSync(join(tmpdir(), 'espalier-cli-'))
  base = join(folder, 'base')
  options = { cwd: folder, env: { ESPALIER_CACHE: join(folder, 'cache') } }
  writeRows(join(folder, 'train.jsonl'), 60, 1)
  writeRows(join(folder, 'held.jsonl'), 12, 2)
  recipe = join(folder, 'recipe.ts')
  writeFileSync(
    recipe,
    `import { defineRecipe } from 'espalier'
export default defineRecipe({
  name: 'tiny', base: './base', adapter: { rank: 4, alpha: 8 },
  data: { train: 'train.jsonl', heldOut: 'held.jsonl', appendEos: false, allowUntrainedStop: true },
  stage: { type: 'sft', maxSteps: 30, learningRate: 5e-3, maxLength: 64, packing: false, microBatchSize: 4, evaluation: { everySteps: 10 } },
})`,
  )
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const lines = (text: string): Scored[] =>
  text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))

describe('a base', () => {
  it('is imported', async () => {
    const args = ['import', goldenDir('models', 'tiny', 'llama'), '--out', base, '--format', 'int4', '--json']
    const found = await espalierJson<Record<string, unknown>>(args, options)
    expect(found).toMatchObject({ dir: base, modelType: 'llama', format: 'int4' })
    expect(Object.values(found.quantizationError as object).length).toBeGreaterThan(5)
    expect(existsSync(join(base, 'weights.safetensors'))).toBe(true)
  })

  it('is inspected', async () => {
    const found = await espalierJson<{ kind: string; tensors: unknown[]; config: object }>(
      ['inspect', base, '--json'],
      options,
    )
    expect(found).toMatchObject({ kind: 'base', config: { hiddenSize: 64 } })
    const { stdout } = await espalier(['inspect', base], options)
    expect(stdout).toContain('model.layers.0.self_attn.q_proj.weight')
  })
})

describe('a recipe', () => {
  it('is planned', async () => {
    const report = await espalierJson<{ totalSteps: number; memory: { fits: boolean } }>(
      ['plan', recipe, '--json'],
      options,
    )
    expect(report).toMatchObject({ totalSteps: 30, memory: { fits: true } })
    const { code, stdout } = await espalier(['plan', recipe, '--set', 'stage.maxSteps=3'], options)
    expect(code).toBe(0)
    expect(stdout).toMatch(/steps +3 of/)
    expect(stdout).toMatch(/⟦.*⟧/)
  })

  it('shows its graphs as text', async () => {
    const { code, stdout } = await espalier(['inspect', recipe, '--graph', 'train'], options)
    expect(code).toBe(0)
    expect(stdout).toMatch(/QuantLinear/)
    expect(stdout).toMatch(/segments +\d+ distinct/)
    const lowered = await espalier(['inspect', recipe, '--graph', 'score', '--lowered'], options)
    expect(lowered.stdout).not.toMatch(/QuantLinear/)
  })

  it('is trained, and leaves run directory and adapter', async () => {
    const result = await espalierJson<{
      reason: string
      step: number
      adapter: string
      before: { loss: number }
      after: { loss: number }
    }>(['run', recipe, '--run-dir', 'whole', '--json'], options)
    expect(result).toMatchObject({ reason: 'completed', step: 30, adapter: join(folder, 'whole', 'adapter') })
    expect(result.after.loss).toBeLessThan(result.before.loss)
    for (const name of ['recipe.json', 'run.json', 'metrics.jsonl', 'report.json', 'adapter/adapter_config.json']) {
      expect(existsSync(join(folder, 'whole', name)), name).toBe(true)
    }
    const again = await espalier(['run', recipe, '--run-dir', 'whole'], options)
    expect(again.code).toBe(1)
    expect(again.stderr).toMatch(/is not empty/)
  })

  it('is interrupted with 130 after a checkpoint, and resumed to the same adapter', async () => {
    const cut = await espalier(['run', recipe, '--run-dir', 'cut', '--plain'], {
      ...options,
      interrupt: { at: 'step 10: held-out' },
    })
    expect(cut.code, cut.stderr).toBe(130)
    expect(cut.stdout).toMatch(/--resume=cut/)
    const changedRecipe = await espalier(['run', recipe, '--resume=cut', '--set', 'stage.learningRate=1'], options)
    expect(changedRecipe.code).toBe(1)
    expect(changedRecipe.stderr).toMatch(/the recipe has changed since the run began \(stage.learningRate\)/)
    const resumed = await espalier(['run', recipe, '--resume=cut', '--plain'], options)
    expect(resumed.code, resumed.stderr).toBe(0)
    const weights = (run: string) => readFileSync(join(folder, run, 'adapter', 'adapter_model.safetensors'))
    expect(weights('cut').equals(weights('whole'))).toBe(true)
  })

  it('ends at once when interrupted twice', async () => {
    const args = ['run', recipe, '--run-dir', 'twice', '--plain', '--set', 'stage.maxSteps=3000']
    const { code } = await espalier(args, { ...options, interrupt: { at: 'step 1/', times: 2 } })
    expect(code).toBe(130)
  })

  it('is evaluated with and without adapter as in the run', async () => {
    const report = JSON.parse(readFileSync(join(folder, 'whole', 'report.json'), 'utf8'))
    const alone = await espalierJson<{ loss: number; rows: number }>(['eval', recipe, '--json'], options)
    const adapted = await espalierJson<{ loss: number }>(
      ['eval', recipe, '--adapter', 'whole/adapter', '--json'],
      options,
    )
    expect(alone.rows).toBe(12)
    expect(alone.loss).toBeCloseTo(report.before.loss, 2)
    expect(adapted.loss).toBeCloseTo(report.after.loss, 2)
  })
})

describe('score', () => {
  const rows = [{ text: 'red green blue' }, { inputIds: [5, 6, 7, 8], labels: [-100, -100, 7, 8] }, { inputIds: [9] }]
  const input = rows.map((row) => JSON.stringify(row)).join('\n')

  it('prints one JSON line per row, from a file and from standard input', async () => {
    writeFileSync(join(folder, 'rows.jsonl'), input)
    const args = ['score', base, '--precision', 'fp32', '--top', '3']
    const { stdout, code } = await espalier([...args, '--input', 'rows.jsonl'], options)
    expect(code).toBe(0)
    const scored = lines(stdout)
    expect(scored).toHaveLength(3)
    for (const [i, { inputIds, logps, nll, tokens, top }] of scored.entries()) {
      expect(logps).toHaveLength(inputIds.length)
      expect(logps[0]).toBeNull()
      const counted = logps.slice(i === 1 ? 2 : 1) as number[]
      expect(tokens).toBe(counted.length)
      expect(nll).toBeCloseTo(-counted.reduce((a, b) => a + b, 0), 10)
      expect(top).toHaveLength(3)
    }
    const piped = await espalier([...args, '--input', '-'], { ...options, input })
    expect(piped.stdout).toBe(stdout)
  })

  it('with an adapter gives other numbers', async () => {
    const [plain] = lines((await espalier(['score', base, '--input', 'rows.jsonl'], options)).stdout)
    const [adapted] = lines(
      (await espalier(['score', base, '--input', 'rows.jsonl', '--adapter', 'whole/adapter'], options)).stdout,
    )
    expect(adapted!.inputIds).toEqual(plain!.inputIds)
    expect(adapted!.nll).not.toBeCloseTo(plain!.nll, 3)
  })

  it.each([
    ['{"text": 5}', /:1: "text" must be a string/],
    ['{"text": "a"}\n{"inputIds": [1, 99999]}', /:2: inputIds\[1\] is 99999/],
    ['{"text": "a"}\n{"text', /:2: is not valid JSON/],
    ['{"text": ""}', /:1: has no token to score/],
    ['{"tekst": "a"}', /:1: columns "tekst" fit no dataset type/],
  ])('%s names the line', async (text, message) => {
    const { code, stderr } = await espalier(['score', base, '--input', '-'], { ...options, input: text })
    expect(code).toBe(1)
    expect(stderr).toMatch(message)
  })
})

it('generate continues a prompt, the same for the same seed', async () => {
  const args = [
    'generate',
    base,
    '--prompt',
    'red green ',
    '--max-new-tokens',
    '8',
    '--temperature',
    '1',
    '--seed',
    '3',
    '--json',
  ]
  const first = await espalierJson<{ tokenIds: number[]; text: string }>(args, options)
  expect(first.tokenIds.length).toBeGreaterThan(0)
  expect((await espalierJson<{ tokenIds: number[] }>(args, options)).tokenIds).toEqual(first.tokenIds)
  const { stdout } = await espalier(args.slice(0, -1), options)
  expect(stdout).toBe(`${first.text}\n`)
})

it('an adapter is inspected', async () => {
  const found = await espalierJson<{ kind: string; rank: number }>(['inspect', 'whole/adapter', '--json'], options)
  expect(found).toMatchObject({ kind: 'adapter', rank: 4, alpha: 8 })
})
