// Whole runs of the stages that sample: that the reward rises, that they start where they must and go on where they were
// cut short, bit for bit, and what becomes of a reward that fails.
import { readFileSync } from 'node:fs'
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import type { TrainableRecipe } from '../../src/training/index.js'
import type { Completion } from '../../src/training/rewards/reward.js'
import {
  adapterFile,
  alignmentRecipe,
  expectSameWhenCut,
  letters,
  runKilled,
  runTiny,
  runWithThreads,
  usePlace,
  withStage,
  writeWordRows,
} from './tiny-runs.js'

const place = usePlace('espalier-online-')
const files = {} as Record<'prompts' | 'heldOut' | 'texts' | 'pairs', string>
beforeAll(() => {
  const prompt = (word: () => string) => ({ prompt: `${word()} ${word()}: `, kind: word() })
  const write = (name: string, count: number, seed: number, rowOf: (word: () => string) => object) =>
    writeWordRows(join(place.folder, name), count, seed, rowOf)
  files.prompts = write('prompts.jsonl', 32, 1, prompt)
  files.heldOut = write('held-out.jsonl', 16, 2, prompt)
  files.texts = write('texts.jsonl', 4, 3, (word) => ({ text: word() }))
  files.pairs = write('pairs.jsonl', 48, 4, (word) => ({ prompt: `${word()}: `, chosen: word(), rejected: '%#!&' }))
})

const shape: Record<string, object> = {
  ppo: { promptsPerStep: 16, temperature: 1, numPpoEpochs: 2, numMiniBatches: 2 },
  grpo: { promptsPerStep: 4, numGenerations: 4, beta: 0.01 },
}
const stages = Object.keys(shape)
const recipeOf = (type: string, stage: object = {}, data: object = {}): TrainableRecipe =>
  alignmentRecipe(
    place,
    { train: files.prompts, heldOut: files.heldOut, ...data },
    {
      type,
      rewards: [{ function: letters }],
      maxSteps: 4,
      learningRate: 5e-3,
      maxCompletionLength: 8,
      microBatchSize: 8,
      ...shape[type],
      ...stage,
    },
  )

describe.each(stages)('%s', (type) => {
  it('raises the reward; what was sampled and what is recomputed agree', async () => {
    const recipe = recipeOf(type, { maxSteps: 12, learningRate: 3e-2, promptsPerStep: type === 'ppo' ? 32 : 8 })
    const { result, steps } = await runTiny(place, recipe)
    const { before, after } = result
    expect(before!.metrics['eval/klPerToken']).toBe(0)
    expect(after!.metrics['eval/klPerToken']).toBeGreaterThan(0)
    expect(after!.metrics['eval/rewards/total']).toBeGreaterThan(before!.metrics['eval/rewards/total']! + 0.1)
    for (const { metrics, loss } of steps) {
      expect(metrics!['sampling/logpGap']).toBeLessThanOrEqual(1e-4)
      expect(Number.isFinite(loss)).toBe(true)
    }
    // Every completion counts each of its tokens, the end token too
    expect(steps[0]!.metrics!['completions/maxLength']).toBeLessThanOrEqual(8)
  })

  it('starts from an adapter, at divergence 0 from it and not from the base', async () => {
    const { adapter } = (await runTiny(place, recipeOf(type, { maxSteps: 3, learningRate: 3e-2 }))).result
    const divergence = async (reference: object | string) => {
      const recipe = recipeOf(type, { maxSteps: 1, startAdapter: adapter!, reference })
      const { result } = await runTiny(place, { ...recipe, adapter: {} })
      return result.before!.metrics['eval/klPerToken']
    }
    expect(await divergence('start')).toBe(0)
    expect(await divergence({ adapter: adapter! })).toBe(0)
    expect(await divergence('base')).not.toBe(0)
    expect(() => recipeOf(type, { startAdapter: adapter! })).toThrow(
      /stage\.reference: training starts from an adapter/,
    )
    expect(() => recipeOf(type, { reference: 'start' })).toThrow(/stage\.reference: 'start' is the adapter/)
  })

  it('cut short at any moment and resumed is the same run, bit for bit', async () => {
    const recipe = recipeOf(type, { evaluation: { everySteps: 2 } })
    const whole = await runTiny(place, recipe)
    const cutAt = (stopAt: Parameters<typeof runTiny>[2] & object) =>
      expectSameWhenCut(place, recipe, whole.runDir, stopAt)

    // After a step; while a step samples; in an evaluation, at the start and between
    expect(await cutAt({ stopAt: (event) => event.type === 'step' && event.step === 3 })).toEqual({ step: 3 })
    const sampling = (task: string) => (event: { type: string; task?: string; done?: number }) =>
      event.type === 'progress' && event.task === task && event.done === 3
    expect(await cutAt({ stopAt: sampling('step 2, sampling') })).toEqual({ step: 1 })
    expect(await cutAt({ stopAt: sampling('evaluating') })).toEqual({ step: 0 })
    let evaluations = 0
    const second = (event: { type: string; task?: string; done?: number }) =>
      sampling('evaluating')(event) && ++evaluations === 2
    expect(await cutAt({ stopAt: second })).toEqual({ step: 2 })

    // While rewards are given: those that were asked are not waited for
    const controller = new AbortController()
    const beforeThat = 16 + 2 * 16 + 16 // an evaluation, two steps, an evaluation
    let asked = 0
    const slow = async (completion: Completion) => {
      if (++asked <= beforeThat || controller.signal.aborted) return letters(completion)
      if (asked === beforeThat + 5) controller.abort()
      return new Promise<number>(() => {})
    }
    const slowly = withStage(recipe, { rewards: [{ ...(recipe.stage.rewards as object[])[0], function: slow }] })
    const cut = await expectSameWhenCut(place, slowly, whole.runDir, { signal: controller.signal })
    expect(cut).toEqual({ step: 2 })
  })
})

describe.each(stages)('%s killed without warning', (type) => {
  it.each(['rollout', 'scoring', 'update'] as const)('in a %s goes on as the same run, bit for bit', async (moment) => {
    const recipe = recipeOf(type, { checkpoint: { everySteps: 1 } })
    const whole = await runTiny(place, recipe)
    const runDir = join(place.folder, `killed-${type}-${moment}`)
    const killed = await runKilled(place, recipe, { runDir, moment, step: 3 })
    expect(killed).toEqual({ signal: 'SIGKILL', steps: [1, 2] })
    const rest = await runKilled(place, recipe, { runDir, step: 3 })
    expect(rest).toEqual({ signal: null, steps: [3, 4] })
    expect(adapterFile(runDir).equals(adapterFile(whole.runDir))).toBe(true)
  })
})

describe('the values of ppo', () => {
  it('are trained at a rate of their own, which is the policy’s where none is given', async () => {
    const stage = { maxSteps: 2, schedule: { type: 'constant' }, missingEosPenalty: 1 }
    const at = (rate?: number) =>
      runTiny(place, recipeOf('ppo', { ...stage, value: rate === undefined ? {} : { learningRate: rate } }))
    const [without, same, slower] = [await at(), await at(5e-3), await at(1e-3)]
    expect(adapterFile(same.runDir).equals(adapterFile(without.runDir))).toBe(true)
    const values = ({ steps }: typeof slower) => steps.map(({ metrics }) => Math.abs(metrics!['values/mean']!))
    expect(values(slower)[0]).toBe(0) // the first step's are those of a fresh head, whatever the rate
    expect(values(slower)[1]).toBeGreaterThan(0)
    expect(values(slower)[1]).toBeLessThan(values(without)[1]! / 2)
  })
})

describe('a reward model', () => {
  let model: string
  beforeAll(async () => {
    const stage = { type: 'reward', maxSteps: 24, learningRate: 5e-3, maxLength: 64 }
    model = (await runTiny(place, alignmentRecipe(place, { train: files.pairs }, stage))).result.adapter!
  })

  it('rewards ppo, and its values start from it', async () => {
    const stage = { maxSteps: 12, learningRate: 2e-2, rewards: [{ model }], value: { startAdapter: model } }
    const { result, steps } = await runTiny(place, recipeOf('ppo', stage))
    const { before, after } = result
    expect(after!.metrics['eval/rewards/total']).toBeGreaterThan(before!.metrics['eval/rewards/total']!)
    // Its head is not fresh: a fresh one is zero and values nothing
    expect(steps[0]!.metrics!['values/mean']).not.toBe(0)
    const fresh = await runTiny(place, recipeOf('ppo', { maxSteps: 1, rewards: [{ model }] }))
    expect(fresh.steps[0]!.metrics!['values/mean']).toBe(0)
    expect(fresh.steps[0]!.metrics!['rewards/total']).toBe(steps[0]!.metrics!['rewards/total'])
  })

  it('and a function are summed with their weights', async () => {
    const rewards = [
      { model, weight: 2 },
      { name: 'letters', function: letters, weight: -3 },
    ]
    const { steps } = await runTiny(place, recipeOf('grpo', { maxSteps: 1, rewards }))
    const metrics = steps[0]!.metrics!
    expect(metrics['rewards/total']).toBeCloseTo(2 * metrics['rewards/model']! - 3 * metrics['rewards/letters']!, 6)
  })

  it('interrupted and resumed is the same run, bit for bit, with values that start from it', async () => {
    const recipe = recipeOf('ppo', { rewards: [{ model }], value: { startAdapter: model } })
    const whole = await runTiny(place, recipe)
    const stopAt = (event: { type: string; step?: number }) => event.type === 'step' && event.step === 2
    await expectSameWhenCut(place, recipe, whole.runDir, { stopAt })
  })

  it('one thread and two give the same bits', async () => {
    const recipes = Object.fromEntries(stages.map((type) => [type, recipeOf(type, { rewards: [{ model }] })]))
    const [one, two] = await Promise.all([1, 2].map((threads) => runWithThreads(place, recipes, threads)))
    for (const type of stages) expect(adapterFile(two![type]!).equals(adapterFile(one![type]!)), type).toBe(true)
  })

  it('that is no reward model is refused', async () => {
    const { adapter } = (await runTiny(place, recipeOf('grpo', { maxSteps: 1 }))).result
    await expect(runTiny(place, recipeOf('ppo', { rewards: [{ model: adapter! }] }))).rejects.toThrow(/score\.weight/)
  })
})

const alone = { maxSteps: 1, evaluation: { atStart: false, atEnd: false } }

describe.each(stages)('%s with a reward that fails', (type) => {
  const failing = {
    throws: [
      () => {
        throw new Error('boom')
      },
      /boom/,
    ],
    'gives no number': [() => Number.NaN, /gave NaN, which is no number/],
    'gives a text': [() => '3' as unknown as number, /gave 3, which is no number/],
    'never answers': [() => new Promise<number>(() => {}), /gave no answer within 0\.05 s/],
  } as const
  it.each(Object.entries(failing))('%s', async (_, [fn, problem]) => {
    let calls = 0
    // Most completions are scored
    const sometimes = (completion: Completion) => (++calls % 5 === 0 ? fn() : letters(completion))
    const recipe = (onFailure?: object) =>
      recipeOf(type, {
        ...alone,
        rewards: [{ name: 'mine', function: sometimes, timeoutSeconds: 0.05, ...(onFailure ? { onFailure } : {}) }],
      })
    const failed = runTiny(place, recipe())
    await expect(failed).rejects.toThrow(problem)
    await expect(failed).rejects.toThrow(
      /^reward mine: [\s\S]*prompt \([^)]*prompts\.jsonl[^)]*\): "\w+ \w+: "\n {2}completion: "[\s\S]*onFailure/,
    )
    const zero = await runTiny(place, recipe({ score: 0 }))
    expect(zero.result.reason).toBe('completed')
    const unscored = runTiny(place, recipe({ score: null }))
    if (type === 'ppo') await expect(unscored).rejects.toThrow(/no reward scored .*: PPO needs one for each/)
    else expect(Number.isFinite((await unscored).steps[0]!.loss)).toBe(true)
  })
})

it('a completion is seen with its prompt, row and place', async () => {
  const seen: Completion[] = []
  const see = (completion: Completion) => {
    seen.push(completion)
    return 1
  }
  const { steps } = await runTiny(place, recipeOf('grpo', { ...alone, rewards: [{ function: see }] }))
  expect(seen).toHaveLength(16)
  for (const { prompt, row, place: where, tokens, finishReason } of seen) {
    expect(row).toEqual({ prompt, kind: expect.any(String) })
    expect(where).toMatch(/prompts\.jsonl/)
    expect(tokens).toBeLessThanOrEqual(8)
    if (finishReason === 'length') expect(tokens).toBe(8)
  }
  // All as good as each other: there is nothing to learn, and nothing breaks
  expect(steps[0]!.metrics!['rewards/zeroStdShare']).toBe(1)
})

it('one failure ends the work on the other completions', async () => {
  let [calls, stopped] = [0, 0]
  const first = (_: Completion, signal: AbortSignal) => {
    if (++calls === 3) throw new Error('boom')
    return new Promise<number>(() => signal.addEventListener('abort', () => stopped++))
  }
  await expect(runTiny(place, recipeOf('grpo', { ...alone, rewards: [{ function: first }] }))).rejects.toThrow(/boom/)
  expect([calls, stopped]).toEqual([16, 15])
})

it.each([
  ['drop', 'left out'],
  ['keepEnd', 'lost their beginning'],
])('prompts that are too long (%s) are counted, and %s', async (promptTruncation, what) => {
  const seen: string[] = []
  const see = ({ prompt }: Completion) => seen.push(prompt)
  const stage = { ...alone, maxPromptLength: 10, promptTruncation, rewards: [{ function: see }] }
  const { events } = await runTiny(place, recipeOf('grpo', stage))
  const message = expect.stringMatching(new RegExp(`prompts are longer than maxPromptLength 10 and .*${what}`))
  expect(events).toContainEqual({ type: 'warning', message })
  const whole: string[] = readFileSync(files.prompts, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line).prompt)
  const cut = seen.filter((prompt) => !whole.includes(prompt))
  expect(cut.length > 0).toBe(promptTruncation === 'keepEnd')
  for (const end of cut) expect(whole.some((prompt) => prompt.endsWith(end))).toBe(true)
})

it('rows without a prompt are refused', async () => {
  const recipe = recipeOf('grpo', alone, { train: files.texts })
  await expect(runTiny(place, recipe)).rejects.toThrow(/texts\.jsonl.*"prompt" must be a text or a list of messages/)
})

describe('a judge', () => {
  type Answer = { status: number; body: string }
  let server: Server
  let answer: (count: number) => Answer | Promise<Answer>
  let asked: { body: { model: string; messages: { role: string; content: string }[] }; headers: IncomingHttpHeaders }[]
  beforeEach(() => {
    asked = []
  })
  beforeAll(async () => {
    server = createServer(async (request, response) => {
      let body = ''
      for await (const chunk of request) body += chunk
      asked.push({ body: JSON.parse(body), headers: request.headers })
      const { status, body: text } = await answer(asked.length)
      response.writeHead(status, { 'content-type': 'application/json' }).end(text)
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  })
  afterAll(() => {
    server.closeAllConnections()
    return new Promise((resolve) => server.close(resolve))
  })
  const says = (content: string): Answer => ({
    status: 200,
    body: JSON.stringify({
      object: 'chat.completion',
      choices: [{ index: 0, message: { role: 'assistant', content } }],
    }),
  })
  const judged = (judge: object = {}, reward: object = {}) => {
    const { port } = server.address() as AddressInfo
    const endpoint = `http://127.0.0.1:${port}/v1`
    const rewards = [{ judge: { endpoint, model: 'strict-judge', ...judge }, ...reward }]
    return runTiny(place, recipeOf('grpo', { ...alone, rewards }))
  }

  it('is shown prompt and completion, and the number that it says counts', async () => {
    answer = (count) => says(count % 2 ? 'I give it 4.' : '6')
    process.env.ESPALIER_TEST_JUDGE_KEY = 'secret'
    const { steps, events } = await judged({ apiKeyVariable: 'ESPALIER_TEST_JUDGE_KEY' })
    delete process.env.ESPALIER_TEST_JUDGE_KEY
    expect(asked).toHaveLength(16)
    expect(steps[0]!.metrics!['rewards/total']).toBe(5)
    const { body, headers } = asked[0]!
    expect(headers.authorization).toBe('Bearer secret')
    expect(body.model).toBe('strict-judge')
    const sample = events.find((event) => event.type === 'sample')!
    const shown = asked.map(({ body }) => body.messages[0]!.content)
    expect(shown).toContainEqual(expect.stringContaining(`Prompt:\n${sample.prompt}\n\nAnswer:\n${sample.text}`))
  })

  it('that fails once is asked again, one that refuses is not', async () => {
    answer = (count) => (count === 1 ? { status: 500, body: 'busy' } : says('7'))
    const { steps } = await judged()
    expect(asked).toHaveLength(17)
    expect(steps[0]!.metrics!['rewards/total']).toBe(7)
    asked = []
    answer = () => ({ status: 404, body: 'no such model' })
    await expect(judged()).rejects.toThrow(/reward judge: the judge answered 404 Not Found: no such model\n {2}prompt/)
    expect(asked.length).toBeLessThanOrEqual(4) // those that ran at once
  })

  it.each([
    ['words', says('lovely'), /the judge answered "lovely", which holds no number/],
    ['a number outside', says('11'), /the judge gave 11, outside 0 to 10/],
    ['another shape', { status: 200, body: '{"text": "7"}' }, /the judge did not answer as .* does: \{"text": "7"\}/],
    [
      'no JSON',
      { status: 200, body: '<html>Welcome</html>' },
      /the judge did not answer as an OpenAI-compatible endpoint does: <html>/,
    ],
  ])('that answers nonsense (%s) stops the run, or counts as the recipe says', async (_, nonsense, message) => {
    answer = () => nonsense
    await expect(judged()).rejects.toThrow(message)
    const { result, steps } = await judged({}, { onFailure: { score: 3 } })
    expect(result.reason).toBe('completed')
    expect(steps[0]!.metrics!['rewards/total']).toBe(3)
  })

  it('is asked nothing more once the run has failed', async () => {
    answer = async (count) => {
      if (count === 2) return says('lovely')
      await new Promise((resolve) => setTimeout(resolve, 100))
      return says('5')
    }
    await expect(judged()).rejects.toThrow(/lovely/)
    const { length } = asked
    await new Promise((resolve) => setTimeout(resolve, 400))
    expect(asked).toHaveLength(length)
  })
})
