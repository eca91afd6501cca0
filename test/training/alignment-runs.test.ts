// Whole runs of a tiny model through the stages of alignment: that they learn, start where they must, and go on where they
// were interrupted, bit for bit.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openBase } from '../../src/models/base-directory.js'
import { openSafetensors } from '../../src/models/safetensors.js'
import { type ResolvedRecipe, resolveRecipe } from '../../src/recipe/index.js'
import { openFrozen } from '../../src/training/adapter.js'
import type { TrainingEvent } from '../../src/training/events.js'
import { run, type TrainableRecipe } from '../../src/training/index.js'
import { importTiny, words } from './tiny-base.js'
import { seeded } from './toy-program.js'

let folder: string
let base: string
const cache = process.env.ESPALIER_CACHE
const steps = 4

/** Rows of JSON → a file. */
function rowsFile(name: string, count: number, seed: number, rowOf: (word: () => string) => object): string {
  const random = seeded(seed)
  const word = () => words[Math.floor(random() * words.length)]!
  const path = join(folder, name)
  writeFileSync(path, Array.from({ length: count }, () => `${JSON.stringify(rowOf(word))}\n`).join(''))
  return path
}

const files = {} as Record<'pairs' | 'heldOutPairs' | 'labelled' | 'prompts' | 'heldOutPrompts', string>
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-alignment-'))
  process.env.ESPALIER_CACHE = join(folder, 'cache')
  base = await importTiny(folder)
  const pair = (word: () => string) => ({
    prompt: `${word()}: `,
    chosen: 'good day',
    rejected: `bad ${word()}`,
    margin: 1,
  })
  files.pairs = rowsFile('pairs.jsonl', 48, 1, pair)
  files.heldOutPairs = rowsFile('held-out-pairs.jsonl', 16, 2, pair)
  files.labelled = rowsFile('labelled.jsonl', 48, 3, (word) => {
    const label = word() < 'm'
    return { prompt: `${word()}: `, completion: label ? 'good day' : 'bad day', label }
  })
  files.prompts = rowsFile('prompts.jsonl', 32, 4, (word) => ({ prompt: `${word()}: ` }))
  files.heldOutPrompts = rowsFile('held-out-prompts.jsonl', 8, 5, (word) => ({ prompt: `${word()}? ` }))
})
afterAll(() => {
  if (cache === undefined) delete process.env.ESPALIER_CACHE
  else process.env.ESPALIER_CACHE = cache
  rmSync(folder, { recursive: true, force: true })
})

function recipeOf(data: object, stage: object, rest: object = {}): TrainableRecipe {
  return {
    name: 'tiny',
    base,
    adapter: { rank: 4, alpha: 8 },
    data,
    stage: { maxSteps: steps, learningRate: 5e-3, precision: 'strict', ...stage },
    ...rest,
  } as unknown as TrainableRecipe
}
const pairData = () => ({ train: files.pairs, heldOut: files.heldOutPairs })
const promptData = () => ({ train: files.prompts, heldOut: files.heldOutPrompts })
/** The share of lower-case letters among what was written. */
const letters = ({ completion, tokens }: { completion: string; tokens: number }) =>
  (completion.match(/[a-z]/g)?.length ?? 0) / tokens
const recipes: Record<string, () => TrainableRecipe> = {
  reward: () => recipeOf(pairData(), { type: 'reward', maxLength: 64, microBatchSize: 4 }),
  dpo: () => recipeOf(pairData(), { type: 'dpo', maxLength: 64, microBatchSize: 4 }),
  kto: () => recipeOf({ train: files.labelled }, { type: 'kto', maxLength: 64, microBatchSize: 4 }),
  ppo: () =>
    recipeOf(promptData(), {
      type: 'ppo',
      rewards: [{ function: letters }],
      promptsPerStep: 8,
      maxCompletionLength: 8,
      temperature: 1,
      numMiniBatches: 2,
      microBatchSize: 4,
    }),
  grpo: () =>
    recipeOf(promptData(), {
      type: 'grpo',
      rewards: [{ function: letters }],
      promptsPerStep: 4,
      numGenerations: 4,
      maxCompletionLength: 8,
      microBatchSize: 4,
    }),
}

interface Ran {
  events: TrainingEvent[]
  result: Awaited<ReturnType<typeof run>['result']>
  adapter: Buffer | undefined
}

let runs = 0
async function runAll(
  recipe: TrainableRecipe,
  options: { runDir?: string; resume?: boolean; onEvent?: (event: TrainingEvent, stop: () => void) => void } = {},
): Promise<Ran & { runDir: string }> {
  const runDir = options.runDir ?? join(folder, `run-${runs++}`)
  const controller = new AbortController()
  const events: TrainingEvent[] = []
  const listener = (event: TrainingEvent) => {
    events.push(event)
    options.onEvent?.(event, () => controller.abort())
  }
  const going = run(recipe, {
    runDir,
    resume: options.resume ?? false,
    signal: controller.signal,
    listeners: [listener],
  })
  const result = await going.result
  const adapter = result.adapter ? readFileSync(join(result.adapter, 'adapter_model.safetensors')) : undefined
  return { runDir, events, result, adapter }
}
const stepsOf = (events: TrainingEvent[]) => events.flatMap((event) => (event.type === 'step' ? [event] : []))

describe.each(Object.keys(recipes))('%s', (name) => {
  it('interrupted and resumed is the same run, bit for bit', async () => {
    const whole = await runAll(recipes[name]!())
    expect(whole.result.reason).toBe('completed')
    const cut = await runAll(recipes[name]!(), {
      onEvent: (event, stop) => event.type === 'step' && event.step === 2 && stop(),
    })
    expect(cut.result.reason).toBe('interrupted')
    const rest = await runAll(recipes[name]!(), { runDir: cut.runDir, resume: true })
    expect(stepsOf(rest.events)[0]!.step).toBe(3)
    expect(rest.adapter).toEqual(whole.adapter)
  })
})

it('a step that is cut short while it samples is repeated to the same tokens', async () => {
  const whole = await runAll(recipes.grpo!())
  const cut = await runAll(recipes.grpo!(), {
    onEvent: (event, stop) =>
      event.type === 'progress' && event.task === 'step 3, sampling' && event.done === 5 && stop(),
  })
  expect(cut.result).toMatchObject({ reason: 'interrupted', step: 2 })
  const rest = await runAll(recipes.grpo!(), { runDir: cut.runDir, resume: true })
  expect(rest.adapter).toEqual(whole.adapter)
})

it('a run that is stopped while a reward waits does not wait for it', async () => {
  const recipe = recipes.grpo!()
  let stop = () => {}
  const waits = () => {
    setTimeout(() => stop(), 20)
    return new Promise<number>(() => {})
  }
  const stage = { ...recipe.stage, rewards: [{ function: waits }], evaluation: { atStart: false } }
  const begin = performance.now()
  const { result } = await runAll({ ...recipe, stage } as TrainableRecipe, {
    onEvent: (event, stopRun) => {
      if (event.type === 'runStart') stop = stopRun
    },
  })
  expect(result).toMatchObject({ reason: 'interrupted', step: 0 })
  expect(performance.now() - begin).toBeLessThan(15_000)
})

it('a reward model learns, and its folder is that of a sequence classifier', async () => {
  const recipe = recipes.reward!()
  const { result } = await runAll({ ...recipe, stage: { ...recipe.stage, maxSteps: 24 } })
  expect(result.after!.metrics['eval/accuracy']).toBe(1)
  expect(result.after!.loss).toBeLessThan(result.before!.loss)
  const config = JSON.parse(readFileSync(join(result.adapter!, 'adapter_config.json'), 'utf8'))
  expect(config).toMatchObject({ task_type: 'SEQ_CLS', modules_to_save: ['classifier', 'score'] })
  const file = openSafetensors(join(result.adapter!, 'adapter_model.safetensors'))
  const { hiddenSize } = openBase(base).config
  expect(file.tensors.get('base_model.model.score.weight')?.shape).toEqual([1, hiddenSize])
  file.close()
  expect(openFrozen(openBase(base), result.adapter!, { hasScore: true }).shape.score?.length).toBe(hiddenSize)
  expect(() => openFrozen(openBase(base), result.adapter!)).toThrow(/score\.weight/)

  // PPO with it as reward and as the start of the values
  const ppo = recipes.ppo!()
  const stage = { ...ppo.stage, rewards: [{ model: result.adapter! }], value: { startAdapter: result.adapter! } }
  const trained = await runAll({ ...ppo, stage } as TrainableRecipe)
  const [first] = stepsOf(trained.events)
  expect(first!.metrics!['values/mean']).not.toBe(0)
  expect(trained.result.before!.metrics['eval/klPerToken']).toBe(0)
})

it('dpo starts at ln 2 and widens the margin', async () => {
  const recipe = recipes.dpo!()
  const { result, events } = await runAll({ ...recipe, stage: { ...recipe.stage, maxSteps: 16 } })
  expect(stepsOf(events)[0]!.loss).toBe(Math.fround(Math.LN2))
  expect(result.before!.metrics['eval/rewards/margins']).toBe(0)
  expect(result.after!.metrics['eval/rewards/margins']).toBeGreaterThan(0.1)
  expect(result.after!.metrics['eval/rewards/accuracies']).toBe(1)

  // From that adapter, compared with itself, it starts at ln 2 again
  const stage = { ...recipe.stage, maxSteps: 1, startAdapter: result.adapter!, reference: 'start' }
  const again = await runAll({ ...recipe, adapter: {}, stage } as unknown as TrainableRecipe)
  expect(stepsOf(again.events)[0]!.loss).toBe(Math.fround(Math.LN2))
})

it('dpo by accumulation changes nothing but the order of sums', async () => {
  const recipe = recipes.dpo!()
  const losses: number[][] = []
  for (const [microBatchSize, gradientAccumulationSteps] of [
    [8, 1],
    [2, 4],
  ]) {
    const stage = { ...recipe.stage, microBatchSize, gradientAccumulationSteps }
    losses.push(stepsOf((await runAll({ ...recipe, stage } as TrainableRecipe)).events).map(({ loss }) => loss))
  }
  for (const [i, loss] of losses[0]!.entries()) expect(losses[1]![i]).toBeCloseTo(loss, 5)
})

it('kto parts desirable and undesirable completions', async () => {
  const recipe = recipes.kto!()
  const { events } = await runAll({ ...recipe, stage: { ...recipe.stage, maxSteps: 16 } })
  const last = stepsOf(events).at(-1)!.metrics!
  expect(last['rewards/chosen']! - last['rewards/rejected']!).toBeGreaterThan(0)
})

it.each(['ppo', 'grpo'])('%s raises the reward, from a divergence of exactly 0', async (name) => {
  const recipe = recipes[name]!()
  const stage = {
    ...recipe.stage,
    maxSteps: 30,
    learningRate: 2e-2,
    ...(name === 'grpo' ? { beta: 0.001 } : { klCoefficient: 0.001 }),
  }
  const { result, events } = await runAll({ ...recipe, stage } as TrainableRecipe)
  expect(result.before!.metrics['eval/klPerToken']).toBe(0)
  expect(result.after!.metrics['eval/rewards/total']).toBeGreaterThan(
    result.before!.metrics['eval/rewards/total']! + 0.05,
  )
  // Sampled and recomputed log-probabilities agree in fp32
  for (const { metrics } of stepsOf(events)) expect(metrics!['sampling/logpGap']).toBeLessThan(1e-4)
})

describe('a reward that fails', () => {
  const withReward = (reward: object): TrainableRecipe => {
    const recipe = recipes.grpo!()
    return {
      ...recipe,
      stage: { ...recipe.stage, maxSteps: 1, evaluation: { atStart: false, atEnd: false }, rewards: [reward] },
    } as TrainableRecipe
  }
  const failing = {
    throws: () => {
      throw new Error('boom')
    },
    'is no number': () => Number.NaN,
    'never answers': () => new Promise<number>(() => {}),
  }
  it.each(Object.entries(failing))(
    '%s: stops with prompt and completion, or counts as the recipe says',
    async (_, fn) => {
      const reward = { name: 'mine', function: fn, timeoutSeconds: 0.05 }
      await expect(runAll(withReward(reward))).rejects.toThrow(
        /reward mine: [\s\S]*prompt \(.*\): "[\s\S]*completion: "/,
      )
      for (const score of [0, null]) {
        const { result } = await runAll(withReward({ ...reward, onFailure: { score } }))
        expect(result.reason).toBe('completed')
      }
    },
  )
})

describe('a judge', () => {
  let server: Server
  let answers: ((count: number) => { status: number; text: string }) | undefined
  let asked: { messages: { content: string }[] }[] = []
  beforeAll(async () => {
    server = createServer((request, response) => {
      let body = ''
      request.on('data', (chunk) => {
        body += chunk
      })
      request.on('end', () => {
        asked.push(JSON.parse(body))
        const { status, text } = answers!(asked.length)
        response.writeHead(status, { 'content-type': 'application/json' })
        response.end(status === 200 ? JSON.stringify({ choices: [{ message: { content: text } }] }) : text)
      })
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  })
  afterAll(() => new Promise((resolve) => server.close(resolve)))

  const judged = () => {
    const recipe = recipes.grpo!()
    const { port } = server.address() as AddressInfo
    const judge = { endpoint: `http://127.0.0.1:${port}/v1`, model: 'judge' }
    const stage = { ...recipe.stage, maxSteps: 1, evaluation: { atStart: false, atEnd: false }, rewards: [{ judge }] }
    return runAll({ ...recipe, stage } as unknown as TrainableRecipe)
  }

  it('is asked for each completion, again after a failure that passes, and its number counts', async () => {
    asked = []
    answers = (count) => (count === 1 ? { status: 500, text: 'busy' } : { status: 200, text: 'Score: 7' })
    const { events } = await judged()
    expect(asked).toHaveLength(17) // 16 completions, one of them twice
    expect(asked[0]!.messages[0]!.content).toContain('Answer:')
    expect(stepsOf(events)[0]!.metrics!['rewards/total']).toBe(7)
  })

  it('that answers with no number, or one outside its range, stops the run', async () => {
    answers = () => ({ status: 200, text: 'lovely' })
    await expect(judged()).rejects.toThrow(/"lovely", which holds no number/)
    answers = () => ({ status: 200, text: '11' })
    await expect(judged()).rejects.toThrow(/gave 11, outside 0 to 10/)
  })
})

describe('what a recipe must say', () => {
  const resolve = (stage: object, data: object = { train: 'rows.jsonl' }): ResolvedRecipe =>
    resolveRecipe({ name: 'r', base: 'b', data, stage })
  it.each([
    [
      { type: 'dpo', startAdapter: 'a' },
      /stage\.reference: training starts from an adapter: say what it is compared with/,
    ],
    [{ type: 'dpo', reference: 'start' }, /stage\.reference: 'start' is the adapter that training starts from/],
    [{ type: 'dpo', loss: 'simpo', reference: 'base' }, /compares with no reference model/],
    [{ type: 'dpo', loss: 'aot', gradientAccumulationSteps: 2 }, /compares pairs of a whole step/],
    [{ type: 'dpo', loss: { type: 'ipo', labelSmoothing: 0.1 } }, /labelSmoothing: unknown key/],
    [{ type: 'kto', microBatchSize: 1 }, /needs two at least/],
    [{ type: 'ppo', rewards: [] }, /stage\.rewards/],
    [{ type: 'grpo', rewards: [{ model: 'm' }], numGenerations: 1 }, /numGenerations/],
  ])('%j', (stage, message) => {
    expect(() => resolve(stage)).toThrow(message)
  })

  it('rows of another type are refused with what would do', async () => {
    await expect(runAll(recipeOf({ train: files.labelled }, { type: 'dpo', maxLength: 64 }))).rejects.toThrow(
      /rows are of type unpaired-preference, and this stage learns from pairs/,
    )
  })
})
