// Whole runs of a tiny model through base, data, compiler and runtime.
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { TrainingEvent } from '../../src/training/events.js'
import { evaluateAdapter, plan, run } from '../../src/training/index.js'
import { importTiny, tinyRecipe, words } from './tiny-base.js'

let folder: string
let base: string
const cache = process.env.ESPALIER_CACHE
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-whole-'))
  process.env.ESPALIER_CACHE = join(folder, 'cache')
  base = await importTiny(folder)
})
afterAll(() => {
  if (cache === undefined) delete process.env.ESPALIER_CACHE
  else process.env.ESPALIER_CACHE = cache
  rmSync(folder, { recursive: true, force: true })
})

const stepsOf = (events: TrainingEvent[]) => events.flatMap((event) => (event.type === 'step' ? [event] : []))
const weights = (runDir: string) => readFileSync(join(runDir, 'adapter', 'adapter_model.safetensors'))

const paths = { kernels: {}, lowered: { kernels: false } }
describe.each(Object.entries(paths))('a tiny run, %s', (path, runtime) => {
  async function runTiny(name: string, options: Omit<Parameters<typeof tinyRecipe>[0], 'folder' | 'base'> = {}) {
    const runDir = join(folder, `${path}-${name}`)
    const going = run(tinyRecipe({ folder, base, runtime, ...options }), { runDir })
    const events: TrainingEvent[] = []
    for await (const event of going) events.push(event)
    return { runDir, events, result: await going.result, steps: stepsOf(events) }
  }

  it('learns and leaves a PEFT folder', async () => {
    const { runDir, result, steps } = await runTiny('learn', { stage: { maxSteps: 30 } })
    expect(result.reason).toBe('completed')
    expect(steps).toHaveLength(30)
    expect(result.after!.loss).toBeLessThan(result.before!.loss - 0.1)
    expect(existsSync(join(runDir, 'adapter', 'adapter_config.json'))).toBe(true)
    const saved = JSON.parse(readFileSync(join(runDir, 'run.json'), 'utf8'))
    expect(saved.hashes).toMatchObject({ base: expect.stringMatching(/^[0-9a-f]{64}$/), train: expect.any(String) })
  })

  it('starts from a PEFT folder', async () => {
    const learnDir = join(folder, `${path}-learn`)
    const startAdapter = join(learnDir, 'adapter')
    const { result } = await runTiny('again', { adapter: {}, stage: { startAdapter, maxSteps: 1, learningRate: 1e-9 } })
    const learned = JSON.parse(readFileSync(join(learnDir, 'report.json'), 'utf8'))
    expect(result.before!.loss).toBeCloseTo(learned.after.loss, 5)
  })

  it.each([
    [
      'accumulation',
      { microBatchSize: 8, gradientAccumulationSteps: 1 },
      { microBatchSize: 1, gradientAccumulationSteps: 8 },
    ],
    ['recomputation', { recompute: 'all' }, { recompute: 'none' }],
  ])('%s changes nothing but the order of sums', async (name, a, b) => {
    const first = await runTiny(`${name}-a`, { stage: a })
    const second = await runTiny(`${name}-b`, { stage: b })
    for (const [i, step] of first.steps.entries()) {
      const other = second.steps[i]!
      expect(Math.abs(step.loss - other.loss) / step.loss).toBeLessThanOrEqual(1e-6)
      expect(Math.abs(step.gradNorm - other.gradNorm) / step.gradNorm).toBeLessThanOrEqual(2e-5)
    }
  })

  // Dropout has no lowering
  const adapters = [{ useDora: true }, { dropout: 0.1 }, { useRslora: true, dropout: 0.1, useDora: true }]
  it.each(adapters.filter((adapter) => path === 'kernels' || !adapter.dropout))(
    'interrupted and resumed is the same run, bit for bit (%o)',
    async (adapter) => {
      const name = JSON.stringify(adapter).replaceAll(/\W/g, '')
      const whole = await runTiny(`${name}-whole`, { adapter })
      const runDir = join(folder, `${path}-${name}-cut`)
      const abort = new AbortController()
      const recipe = tinyRecipe({ folder, base, runtime, adapter })
      const listener = (event: TrainingEvent) => {
        if (event.type === 'step' && event.step === 3) abort.abort()
      }
      const cut = await run(recipe, { runDir, signal: abort.signal, listeners: [listener] }).result
      expect(cut.reason).toBe('interrupted')
      expect(cut.step).toBe(3)
      const resumed = await run(recipe, { runDir, resume: true }).result
      expect(resumed.reason).toBe('completed')
      expect(weights(runDir).equals(weights(whole.runDir))).toBe(true)
    },
  )

  it('evaluates base and adapter apart from training as the run did', async () => {
    const learnDir = join(folder, `${path}-learn`)
    const { before, after } = JSON.parse(readFileSync(join(learnDir, 'report.json'), 'utf8'))
    const recipe = tinyRecipe({ folder, base, runtime })
    const alone = await evaluateAdapter(recipe, { precision: 'strict' })
    const adapted = await evaluateAdapter(recipe, { adapter: join(learnDir, 'adapter'), precision: 'strict' })
    expect(alone.loss).toBeCloseTo(before.loss, 5)
    expect(adapted.loss).toBeCloseTo(after.loss, 5)
  })

  it('judges by choices where the data names them', async () => {
    const { result } = await runTiny('choices', { data: { choices: [...words] }, stage: { maxSteps: 1 } })
    expect(result.before!.metrics['eval/accuracy']).toBeGreaterThanOrEqual(0)
    expect(result.before!.metrics['eval/rows']).toBe(12)
  })

  it('plans steps, memory and time', async () => {
    const report = await plan(tinyRecipe({ folder, base, runtime }))
    expect(report).toMatchObject({ totalSteps: 8, memory: { fits: true } })
    expect(report.data!.rows[0]!.tokens.some(({ trained }) => trained)).toBe(true)
    expect(report.time!.totalSeconds).toBeGreaterThan(0)
  })
})
