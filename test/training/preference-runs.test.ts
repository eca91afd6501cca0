// Whole runs of the stages over preference data: that they learn, and that interruption, accumulation and threads change
// nothing.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { openBase } from '../../src/models/base-directory.js'
import { openSafetensors } from '../../src/models/safetensors.js'
import { openFrozen } from '../../src/training/adapter.js'
import type { TrainableRecipe, TrainingEvent } from '../../src/training/index.js'
import {
  adapterDifference,
  adapterFile,
  alignmentRecipe,
  expectSameWhenCut,
  runTiny,
  runWithThreads,
  usePlace,
  writeWordRows,
} from './tiny-runs.js'

const place = usePlace('espalier-preference-')
const wanted = 'cat'
const files = {} as Record<'pairs' | 'heldOutPairs' | 'labelled' | 'heldOutLabelled' | 'completions', string>
const dataOf: Record<string, () => { train: string; heldOut: string }> = {
  reward: () => ({ train: files.pairs, heldOut: files.heldOutPairs }),
  dpo: () => ({ train: files.pairs, heldOut: files.heldOutPairs }),
  kto: () => ({ train: files.labelled, heldOut: files.heldOutLabelled }),
}
const stages = Object.keys(dataOf)

beforeAll(() => {
  const other = (word: () => string): string => {
    const one = word()
    return one === wanted ? other(word) : one
  }
  const withWord = (word: () => string) => {
    const pieces = [word(), word()]
    pieces.splice(word() < 'h' ? 0 : 1, 0, wanted)
    return pieces.join(' ')
  }
  const withoutWord = (word: () => string) => [other(word), other(word), other(word)].join(' ')
  const pair = (word: () => string) => ({
    prompt: `${word()}: `,
    chosen: withWord(word),
    rejected: withoutWord(word),
  })
  const labelled = (word: () => string) => {
    const label = word() < 'h'
    return { prompt: `${word()}: `, completion: label ? withWord(word) : withoutWord(word), label }
  }
  const write = (name: string, count: number, seed: number, rowOf: (word: () => string) => object) =>
    writeWordRows(join(place.folder, name), count, seed, rowOf)
  files.pairs = write('pairs.jsonl', 120, 1, pair)
  files.heldOutPairs = write('held-out-pairs.jsonl', 32, 2, pair)
  files.labelled = write('labelled.jsonl', 120, 3, labelled)
  files.heldOutLabelled = write('held-out-labelled.jsonl', 32, 4, labelled)
  files.completions = write('completions.jsonl', 8, 5, (word) => ({ prompt: `${word()}: `, completion: word() }))
})

/** A few steps of four rows each, one or several at a time. */
const recipeOf = (type: string, stage: object = {}, data: object = dataOf[type]!()): TrainableRecipe =>
  alignmentRecipe(place, data, { type, maxLength: 64, maxSteps: 4, learningRate: 2e-3, microBatchSize: 2, ...stage })

describe('they learn', () => {
  const learn = { maxSteps: 40, learningRate: 1e-2, microBatchSize: 8 }

  it('reward: who wrote the wanted word wins, in a folder of a sequence classifier', async () => {
    const { result } = await runTiny(place, recipeOf('reward', learn))
    expect(result.after!.metrics['eval/accuracy']).toBeGreaterThan(result.before!.metrics['eval/accuracy']! + 0.2)
    expect(result.after!.metrics['eval/accuracy']).toBeGreaterThan(0.8)
    const config = JSON.parse(readFileSync(join(result.adapter!, 'adapter_config.json'), 'utf8'))
    expect(config).toMatchObject({ task_type: 'SEQ_CLS', modules_to_save: ['classifier', 'score'] })

    const base = openBase(place.base)
    const { hiddenSize } = base.config
    const file = openSafetensors(join(result.adapter!, 'adapter_model.safetensors'))
    expect(file.tensors.get('base_model.model.score.weight')?.shape).toEqual([1, hiddenSize])
    file.close()
    const frozen = openFrozen(base, result.adapter!, { hasScore: true })
    expect(frozen.shape.score?.length).toBe(hiddenSize)

    // Where it goes on from, it is as good as it was
    const again = recipeOf('reward', { maxSteps: 1, learningRate: 1e-9, startAdapter: result.adapter! })
    const { before } = (await runTiny(place, { ...again, adapter: {} })).result
    expect(before!.loss).toBeCloseTo(result.after!.loss, 6)
    expect(before!.metrics['eval/accuracy']).toBe(result.after!.metrics['eval/accuracy'])
  })

  it('dpo: from ln 2 on, the margin of held-out pairs grows', async () => {
    const { result, steps } = await runTiny(place, recipeOf('dpo', learn))
    expect(steps[0]!.loss).toBe(Math.fround(Math.LN2))
    expect(result.before!.loss).toBeCloseTo(Math.LN2, 6)
    expect(result.before!.metrics['eval/rewards/margins']).toBe(0)
    expect(result.after!.metrics['eval/rewards/margins']).toBeGreaterThan(0.1)
    expect(result.after!.metrics['eval/rewards/accuracies']).toBeGreaterThan(0.8)
    expect(result.after!.loss).toBeLessThan(result.before!.loss)
  })

  it('kto: rewards of what is desirable and what is not part, on held-out rows', async () => {
    const { result } = await runTiny(place, recipeOf('kto', learn))
    const { before, after } = result
    for (const side of ['chosen', 'rejected']) expect(before!.metrics[`eval/rewards/${side}`]).toBe(0)
    expect(after!.metrics['eval/rewards/chosen']).toBeGreaterThan(after!.metrics['eval/rewards/rejected']! + 0.1)
    expect(after!.loss).toBeLessThan(before!.loss)
  })
})

describe.each(stages)('%s', (type) => {
  it('interrupted and resumed is the same run, bit for bit', async () => {
    // Evaluations between, and more steps than an epoch has
    const recipe = recipeOf(type, {
      maxSteps: 5,
      microBatchSize: 16,
      gradientAccumulationSteps: 2,
      evaluation: { everySteps: 2 },
    })
    const whole = await runTiny(place, recipe)
    for (const step of [1, 4]) {
      const stopAt = (event: { type: string; step?: number }) => event.type === 'step' && event.step === step
      expect((await expectSameWhenCut(place, recipe, whole.runDir, { stopAt })).step).toBe(step)
    }
  })

  it('by four and one at a time is the same but for the order of sums', async () => {
    const of = (microBatchSize: number, gradientAccumulationSteps: number) =>
      runTiny(place, recipeOf(type, { microBatchSize, gradientAccumulationSteps, learningRate: 1e-4 }))
    const [four, one] = [await of(4, 1), await of(1, 4)]
    for (const [i, { loss }] of four.steps.entries()) expect(one.steps[i]!.loss).toBeCloseTo(loss, 5)
    expect(adapterDifference(four.runDir, one.runDir)).toBeLessThan(1e-5)
  })
})

it('one thread and two give the same bits', async () => {
  const recipes = Object.fromEntries(stages.map((type) => [type, recipeOf(type, { gradientAccumulationSteps: 2 })]))
  const [one, two] = await Promise.all([1, 2].map((threads) => runWithThreads(place, recipes, threads)))
  for (const type of stages) expect(adapterFile(two![type]!).equals(adapterFile(one![type]!)), type).toBe(true)
})

describe.each(['dpo', 'kto'])('%s with its reference remembered', (type) => {
  const filesOf = (folder: string) => (existsSync(folder) ? readdirSync(folder) : [])
  const isReference = (event: TrainingEvent) =>
    event.type === 'progress' && event.task === 'reference log-probabilities'

  it('takes the same steps, bit for bit, computes once, and anew where the file is damaged', async () => {
    const cache = join(place.folder, 'cache', 'reference')
    const before = filesOf(cache)
    // Two epochs and more
    const stage = { maxSteps: 20, microBatchSize: 4, gradientAccumulationSteps: 4 }
    const plain = await runTiny(place, recipeOf(type, stage))
    expect(filesOf(cache)).toEqual(before)
    const recipe = recipeOf(type, { ...stage, cacheReference: true })
    const [first, again] = [await runTiny(place, recipe), await runTiny(place, recipe)]
    const [made, ...others] = filesOf(cache).filter((name) => !before.includes(name))
    expect([made?.endsWith('.arrow'), others]).toEqual([true, []])
    expect(first.events.filter(isReference).at(-1)).toMatchObject({ done: type === 'dpo' ? 240 : 120 })
    expect(again.events.some(isReference)).toBe(false)
    for (const { runDir } of [first, again]) expect(adapterFile(runDir).equals(adapterFile(plain.runDir))).toBe(true)

    writeFileSync(join(cache, made!), readFileSync(join(cache, made!)).subarray(0, 500))
    const mended = await runTiny(place, recipe)
    expect(mended.events).toContainEqual({ type: 'warning', message: expect.stringContaining('is damaged') })
    expect(adapterFile(mended.runDir).equals(adapterFile(plain.runDir))).toBe(true)

    // Another reference is another file
    await runTiny(place, {
      ...recipeOf(type, { ...stage, cacheReference: true, reference: { adapter: first.result.adapter! } }),
    })
    expect(filesOf(cache)).toHaveLength(before.length + 2)
  })

  it('leaves nothing behind where it is stopped while it is made', async () => {
    const recipe = recipeOf(type, { cacheReference: true, maxLength: 63 })
    const before = filesOf(join(place.folder, 'cache', 'reference'))
    await expect(runTiny(place, recipe, { stopAt: isReference })).rejects.toThrow(/aborted/)
    expect(filesOf(join(place.folder, 'cache', 'reference'))).toEqual(before)
  })
})

describe('refused', () => {
  it('a cache of a reference that the loss has none of', () => {
    expect(() => recipeOf('dpo', { loss: 'simpo', cacheReference: true })).toThrow(
      /stage\.cacheReference: this loss compares with no reference model/,
    )
  })

  it.each([
    [{ type: 'dpo', loss: 'simpo', reference: 'base' }, /compares with no reference model/],
    [{ type: 'dpo', loss: 'aot', gradientAccumulationSteps: 2 }, /compares pairs of a whole step/],
    [{ type: 'dpo', loss: { type: 'ipo', labelSmoothing: 0.1 } }, /labelSmoothing: unknown key/],
    [{ type: 'kto', microBatchSize: 1 }, /needs two at least/],
    [{ type: 'ppo', rewards: [] }, /stage\.rewards/],
    [{ type: 'grpo', rewards: [{ model: 'm' }], numGenerations: 1 }, /numGenerations/],
  ])('%j', (stage, message) => {
    expect(() => alignmentRecipe(place, { train: files.pairs }, stage)).toThrow(message)
  })

  it.each(['dpo', 'kto'])('%s: a reference that is not named, or is not there', (type) => {
    expect(() => recipeOf(type, { reference: 'start' })).toThrow(
      /stage\.reference: 'start' is the adapter that training starts from: name one in startAdapter, or use 'base'/,
    )
    expect(() => recipeOf(type, { startAdapter: 'folder' })).toThrow(
      /stage\.reference: training starts from an adapter: say what it is compared with \('start', 'base' or/,
    )
    for (const reference of ['start', 'base', { adapter: 'other' }])
      expect(recipeOf(type, { startAdapter: 'folder', reference }).stage.reference).toEqual(reference)
  })

  it.each([
    ['reward', 'labelled', /rows are of type unpaired-preference, .* learns from pairs \{prompt, chosen, rejected\}/],
    ['reward', 'completions', /rows are of type prompt-completion, .* learns from pairs/],
    ['dpo', 'completions', /rows are of type prompt-completion, .* learns from pairs/],
    ['kto', 'pairs', /rows are of type preference, .* learns from \{prompt, completion, label\}/],
    ['sft', 'pairs', /rows are of type preference, .* learns from texts, prompts with completions, or conversations/],
  ] as const)('%s: rows of %s, with what would do', async (type, rows, message) => {
    const recipe = recipeOf(type, {}, { train: files[rows] })
    await expect(runTiny(place, recipe)).rejects.toThrow(message)
    // The held-out rows count too
    if (type === 'sft') return
    const { train } = dataOf[type]!()
    const mixed = recipeOf(type, {}, { train, heldOut: files[rows] })
    await expect(runTiny(place, mixed)).rejects.toThrow(message)
  })
})

it('a stage keeps to its start: with reference start the first loss of dpo is ln 2 again', async () => {
  const first = await runTiny(place, recipeOf('dpo', { maxSteps: 8, learningRate: 1e-2 }))
  const startAdapter = first.result.adapter!
  const from = (reference: object | string) =>
    runTiny(place, { ...recipeOf('dpo', { maxSteps: 1, startAdapter, reference }), adapter: {} })
  for (const reference of ['start', { adapter: startAdapter }])
    expect((await from(reference)).steps[0]!.loss).toBe(Math.fround(Math.LN2))
  const { result } = await from('base')
  expect(result.before!.loss).toBeCloseTo(first.result.after!.loss, 5)
})
