// Invariances of whole runs (design §9), each run a process of its own: accumulation, packing, recomputation, threads,
// and kill -9 at random moments.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { importTiny, tinyRecipe } from '../training/tiny-base.js'
import { seeded } from '../training/toy-program.js'
import { adapterWeights, launch, launchWhole, readMetrics } from './launch.js'

let folder: string
let base: string
let env: Record<string, string>
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-e2e-'))
  base = await importTiny(folder)
  env = { ESPALIER_CACHE: join(folder, 'cache') }
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const recipeOf = (stage: Record<string, unknown>, adapter = {}) => tinyRecipe({ folder, base, stage, adapter })
const runOf = (name: string, stage: Record<string, unknown>, extra: Record<string, string> = {}, adapter = {}) =>
  launchWhole(recipeOf(stage, adapter), join(folder, name), { ...env, ...extra })

/** Relative difference per step: strict arithmetic in another order of sums. */
function expectSame(a: string, b: string, tolerance = 1e-6) {
  const first = readMetrics(a).steps
  const second = readMetrics(b).steps
  expect(second).toHaveLength(first.length)
  for (const [i, { step, loss, gradNorm }] of first.entries()) {
    const other = second[i]!
    expect(Math.abs(other.loss - loss) / loss, `loss of step ${step}`).toBeLessThanOrEqual(tolerance)
    // Adam divides by small numbers: what was 1e-7 apart after one step is a little more after several
    expect(Math.abs(other.gradNorm - gradNorm) / gradNorm, `norm of step ${step}`).toBeLessThanOrEqual(20 * tolerance)
  }
}

it('8×1, 4×2 and 1×8 are one run', { timeout: 180_000 }, async () => {
  const of = (microBatchSize: number, gradientAccumulationSteps: number) =>
    runOf(`cut-${microBatchSize}`, { microBatchSize, gradientAccumulationSteps })
  const whole = await of(8, 1)
  expectSame(whole, await of(4, 2))
  expectSame(whole, await of(1, 8))
})

it('packed and unpacked are one run', { timeout: 120_000 }, async () => {
  // Every step holds all rows, so that both see the same ones
  const stage = { maxSteps: undefined, epochs: 4, maxLength: 96 }
  const unpacked = await runOf('unpacked', {
    ...stage,
    packing: false,
    microBatchSize: 60,
    gradientAccumulationSteps: 1,
  })
  const packed = await runOf('packed', { ...stage, packing: true, microBatchSize: 2, gradientAccumulationSteps: 40 })
  expect(readMetrics(packed).steps).toHaveLength(4)
  expectSame(unpacked, packed)
})

it('recomputing changes nothing', { timeout: 120_000 }, async () => {
  expectSame(await runOf('kept', { recompute: 'none' }), await runOf('recomputed', { recompute: 'all' }))
})

it('one thread and two give the same bits, fast and strict', { timeout: 180_000 }, async () => {
  for (const precision of ['fast', 'strict']) {
    const one = await runOf(`one-${precision}`, { precision }, { ESPALIER_THREADS: '1' })
    const two = await runOf(`two-${precision}`, { precision }, { ESPALIER_THREADS: '2' })
    expect(readMetrics(two).steps).toEqual(readMetrics(one).steps)
    expect(adapterWeights(two).equals(adapterWeights(one))).toBe(true)
  }
})

it('killed at 20 random moments and resumed, ends with the same bits', { timeout: 600_000 }, async () => {
  const stage = {
    maxSteps: 160, // more than twenty attempts get through, however fast the machine
    precision: 'fast',
    evaluation: { everySteps: 7 },
    checkpoint: { everySteps: 3 },
    earlyStopping: { patience: 50 },
  }
  const adapter = { dropout: 0.1 }
  const whole = await runOf('undisturbed', stage, {}, adapter)
  const runDir = join(folder, 'killed')
  const recipe = recipeOf(stage, adapter)
  const seed = Number(process.env.ESPALIER_TEST_SEED ?? Date.now() % 1e6)
  const random = seeded(seed)
  let kills = 0
  for (let attempt = 0; kills < 20; attempt++) {
    expect(attempt, `seed ${seed}`).toBeLessThan(80)
    // Some fall into the start, most into steps, evaluations and checkpoints
    const kill =
      random() < 0.2
        ? { after: 'spawn' as const, milliseconds: random() * 1500 }
        : { after: 'steps' as const, milliseconds: random() * 120 }
    const launched = await launch(recipe, runDir, { env, kill })
    if (launched.isKilled) kills++
    else if (launched.isDone) break
    else throw new Error(`seed ${seed}: ${launched.output}`)
  }
  await launchWhole(recipe, runDir, env)
  expect(kills, `seed ${seed}`).toBeGreaterThanOrEqual(20)
  expect(adapterWeights(runDir).equals(adapterWeights(whole)), `seed ${seed}`).toBe(true)
  expect(readMetrics(runDir), `seed ${seed}`).toEqual(readMetrics(whole))
})
