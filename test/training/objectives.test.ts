// Objectives through a whole training step of a tiny model: what they start at, that gradients are those of the loss, that
// accumulation and the lowered path change nothing.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openRuntime, type Runtime } from '../../src/runtime/index.js'
import { packDocuments } from '../../src/training/evaluate.js'
import { preferenceLossNames, preferenceLossSchema, termsOf } from '../../src/training/losses/preference/index.js'
import type { Objective } from '../../src/training/objective.js'
import {
  fillPairs,
  needsOf,
  type PreferenceOptions,
  pairBatch,
  preferenceObjective,
} from '../../src/training/objectives/preference.js'
import { fillRewardPairs, rewardObjective } from '../../src/training/objectives/reward.js'
import { fillUnpaired, unpairedObjective } from '../../src/training/objectives/unpaired.js'
import type { MicroBatch } from '../../src/training/program.js'
import type { LiveProgram } from '../../src/training/step.js'
import { tinyBase, tinyProgram } from '../device/tiny-base.js'
import { randomSource } from '../ops/case.js'

let kernels: Runtime
let lowered: Runtime
beforeAll(async () => {
  kernels = await openRuntime({ threads: 2 })
  lowered = await openRuntime({ kernels: false })
})
afterAll(async () => {
  await kernels?.close()
  await lowered?.close()
})

const pairs = 4
const promptTokens = 3

/** Four pairs; completions of different lengths. */
function documents() {
  return Array.from({ length: 2 * pairs }, (_, d) => {
    const length = promptTokens + 3 + ((d * 5) % 4)
    const ids = Int32Array.from(
      { length },
      (_, i) => (i < promptTokens ? 11 + 7 * (d >> 1) + i : 20 + 13 * d + 5 * i) % 128,
    )
    const labels = Int32Array.from(ids, (_, i) => (i >= promptTokens - 1 && i + 1 < length ? ids[i + 1]! : -100))
    return { ids, labels }
  })
}
const batchOf = (from: number, to: number): MicroBatch => ({
  ...packDocuments(documents().slice(2 * from, 2 * to)),
  groups: Array.from({ length: to - from }, (_, i) => from + i),
})
const optionsOf = (loss: unknown, rest: Partial<PreferenceOptions> = {}): PreferenceOptions => ({
  terms: termsOf(preferenceLossSchema.parse(loss)),
  beta: 0.5,
  ldAlpha: 1,
  useWeighting: false,
  ...rest,
})
const open = (runtime: Runtime, objective: Objective, score = false) =>
  tinyProgram(tinyBase(runtime), {
    objective,
    score,
    reference: null,
    maxTokens: 128,
    maxDocuments: 16,
    maxDims: { P: 8, Q: 16 },
  })

/** Moves the parameters off their start, so that nothing is zero by symmetry. */
function disturb(program: LiveProgram): void {
  const random = randomSource(21)
  for (let i = 0; i < program.params.length; i++) program.params[i]! += (random() - 0.5) * 0.1
}

/** Fills the micro-batches that the cuts give. */
async function filled(program: LiveProgram, options: PreferenceOptions, cuts: number[][]): Promise<MicroBatch[]> {
  const batches = cuts.map(([from, to]) => pairBatch(batchOf(from!, to!), options))
  const references: (Float32Array | undefined)[] = []
  for (const { batch } of batches) {
    const needed = needsOf(options.terms).reference
    references.push(needed ? (await program.score(batch, { model: 'reference' })).values : undefined)
  }
  return fillPairs(batches, references, options)
}

/** Loss and gradients of one step. */
async function step(program: LiveProgram, batches: readonly MicroBatch[], lossScale: number) {
  let loss = 0
  for (const [i, batch] of batches.entries())
    loss += (await program.accumulate(batch, { first: i === 0, lossScale, rngStep: 1 })).lossSum
  return { loss, grads: program.grads.slice() }
}

function expectSame(a: Float32Array, b: Float32Array, tolerance: number) {
  const top = a.reduce((m, x) => Math.max(m, Math.abs(x)), 1e-6)
  for (const [i, x] of a.entries())
    if (!(Math.abs(x - b[i]!) <= tolerance * top)) throw new Error(`entry ${i}: ${x} and ${b[i]}, largest ${top}`)
}

/** The gradient along a direction against central differences of the loss. */
async function checkGradient(program: LiveProgram, batches: readonly MicroBatch[], lossScale: number) {
  const { grads } = await step(program, batches, lossScale)
  const random = randomSource(5)
  const direction = Float32Array.from(grads, () => random() - 0.5)
  const slope = grads.reduce((sum, g, i) => sum + g * direction[i]!, 0)
  const start = program.params.slice()
  const h = 2e-3
  const at = async (by: number) => {
    for (let i = 0; i < start.length; i++) program.params[i] = start[i]! + by * direction[i]!
    let loss = 0
    for (const batch of batches) loss += (await program.evaluate(batch, { lossScale })).lossSum
    return loss
  }
  const measured = ((await at(h)) - (await at(-h))) / (2 * h)
  program.params.set(start)
  expect(Math.abs(measured - slope)).toBeLessThan(0.02 * Math.abs(slope) + 2e-4)
}

describe('preference', () => {
  it('starts at ln 2 exactly, with rewards of zero', async () => {
    const options = optionsOf('sigmoid')
    const program = await open(kernels, preferenceObjective(options))
    const [batch] = await filled(program, options, [[0, pairs]])
    const { lossSum, outputs } = await program.accumulate(batch!, { first: true, lossScale: 1 / pairs, rngStep: 1 })
    expect(lossSum).toBe(Math.fround(Math.LN2))
    expect(outputs.chosenLogps).toEqual(outputs.refChosenLogps)
    expect(outputs.rejectedLogps).toEqual(outputs.refRejectedLogps)
    program.close()
  })

  it.each(preferenceLossNames)('%s: gradients, accumulation and the lowered path', async (name) => {
    const options = optionsOf(name)
    const program = await open(kernels, preferenceObjective(options))
    disturb(program)
    const whole = await filled(program, options, [[0, pairs]])
    await checkGradient(program, whole, 1 / pairs)
    const one = await step(program, whole, 1 / pairs)
    if (!needsOf(options.terms).couplesPairs) {
      const cut = await step(
        program,
        await filled(program, options, [
          [0, 1],
          [1, 3],
          [3, 4],
        ]),
        1 / pairs,
      )
      expect(cut.loss).toBeCloseTo(one.loss, 5)
      expectSame(one.grads, cut.grads, 2e-5)
    }
    const other = await open(lowered, preferenceObjective(options))
    disturb(other)
    const plain = await step(other, await filled(other, options, [[0, pairs]]), 1 / pairs)
    expect(plain.loss).toBeCloseTo(one.loss, 4)
    expectSame(one.grads, plain.grads, 1e-3)
    program.close()
    other.close()
  })

  it.each([
    ['a mixture', optionsOf(['sigmoid', { type: 'bco_pair', weight: 0.5 }, { type: 'sft', weight: 0.2 }])],
    ['LD-DPO', optionsOf('sigmoid', { ldAlpha: 0.3 })],
    ['WPO', optionsOf('sigmoid', { useWeighting: true })],
  ])('%s: the lowered path gives the same', async (_, options) => {
    const results: Awaited<ReturnType<typeof step>>[] = []
    for (const runtime of [kernels, lowered]) {
      const program = await open(runtime, preferenceObjective(options))
      disturb(program)
      results.push(
        await step(
          program,
          await filled(program, options, [
            [0, 2],
            [2, 4],
          ]),
          1 / pairs,
        ),
      )
      program.close()
    }
    expect(results[0]!.loss).toBeCloseTo(results[1]!.loss, 4)
    expectSame(results[0]!.grads, results[1]!.grads, 1e-3)
  })
})

describe('reward', () => {
  it('gradients reach adapter and head; accumulation and the lowered path change nothing', async () => {
    const objective = rewardObjective({ centerRewardsCoefficient: 0.01, useMargin: true })
    const margins = [0.5, 1, 0, 0.25]
    const cut = (parts: number[][]) =>
      parts.map(([from, to]) => fillRewardPairs(batchOf(from!, to!), margins.slice(from, to)))
    const program = await open(kernels, objective, true)
    disturb(program)
    await checkGradient(program, cut([[0, pairs]]), 1 / pairs)
    const one = await step(program, cut([[0, pairs]]), 1 / pairs)
    const head = program.layout.tensors.find(({ kind }) => kind === 'score')!
    expect(one.grads.subarray(head.offset).some((g) => g !== 0)).toBe(true)
    expect(one.grads.subarray(0, head.offset).some((g) => g !== 0)).toBe(true)
    const three = await step(
      program,
      cut([
        [0, 1],
        [1, 3],
        [3, 4],
      ]),
      1 / pairs,
    )
    expectSame(one.grads, three.grads, 2e-5)
    const other = await open(lowered, objective, true)
    disturb(other)
    const plain = await step(other, cut([[0, pairs]]), 1 / pairs)
    expect(plain.loss).toBeCloseTo(one.loss, 4)
    expectSame(one.grads, plain.grads, 1e-3)
    program.close()
    other.close()
  })

  it('reads the score at the last token, whatever follows in the pack', async () => {
    const program = await open(kernels, rewardObjective({ centerRewardsCoefficient: 0, useMargin: false }), true)
    disturb(program)
    const together = (await program.evaluate(fillRewardPairs(batchOf(0, pairs), undefined), { lossScale: 1 })).outputs
    for (let p = 0; p < pairs; p++) {
      const alone = (await program.evaluate(fillRewardPairs(batchOf(p, p + 1), undefined), { lossScale: 1 })).outputs
      expect(together.scores![2 * p]).toBeCloseTo(alone.scores![0]!, 5)
      expect(together.scores![2 * p + 1]).toBeCloseTo(alone.scores![1]!, 5)
    }
    program.close()
  })
})

it.each(['kto', 'apo_zero_unpaired'] as const)('%s: gradients, accumulation and the lowered path', async (loss) => {
  const objective = unpairedObjective({ loss, beta: 0.5, desirableWeight: 1, undesirableWeight: 1.5 })
  const labels = [1, 0, 0, 1, 1, 1, 0, 0]
  const fill = async (program: LiveProgram, parts: number[][]) => {
    const batches: MicroBatch[] = []
    for (const [from, to] of parts) {
      const batch = batchOf(from!, to!)
      const { values: refLogps } = await program.score(batch, { model: 'reference' })
      batches.push(fillUnpaired(batch, { refLogps, labels: labels.slice(2 * from!, 2 * to!), kl: 0.05 }))
    }
    return batches
  }
  const scale = 1 / labels.length
  const program = await open(kernels, objective)
  disturb(program)
  const whole = await fill(program, [[0, pairs]])
  await checkGradient(program, whole, scale)
  const one = await step(program, whole, scale)
  const cut = await step(
    program,
    await fill(program, [
      [0, 1],
      [1, 4],
    ]),
    scale,
  )
  expectSame(one.grads, cut.grads, 2e-5)
  const other = await open(lowered, objective)
  disturb(other)
  const plain = await step(other, await fill(other, [[0, pairs]]), scale)
  expectSame(one.grads, plain.grads, 1e-3)
  program.close()
  other.close()
})
