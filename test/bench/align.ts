// `bench -- align [--seeds N]`: runs recipes/align.ts and measures on held-out prompts what each stage came to. The judge
// is the stated rule (goldReward), never the learned reward model; ties count one half. A folder given by --run-dir is
// gone on with, finished stages are not run again.
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import {
  isPipeline,
  type LanguageModel,
  loadRecipeFile,
  openModel,
  type PipelineResult,
  runPipeline,
} from '../../src/index.js'
import { packageRoot } from '../../src/runtime/native.js'
import { distinct2 } from '../../src/training/online/completion-metrics.js'

const recipePath = join(packageRoot(), 'recipes', 'align.ts')
const maxNewTokens = 48

/** Completions of the held-out prompts by one adapter, and what they come to. */
interface Measured {
  rewards: number[]
  klPerToken: number
  distinct2: number
  basePerplexity: number
}

const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length
const deviation = (values: readonly number[]) => {
  const average = mean(values)
  return Math.sqrt(values.reduce((sum, x) => sum + (x - average) ** 2, 0) / (values.length - 1))
}

async function measure(
  model: LanguageModel,
  adapter: string,
  prompts: readonly string[],
  goldReward: (text: string) => number,
): Promise<Measured> {
  const { tokenizer } = model
  const texts: string[] = []
  /** Tokens of the text, and with the one that ended it: whether to end is a decision of the policy like any other. */
  const completions: { completionIds: Int32Array; withEnd: Int32Array }[] = []
  const requests = prompts.map((text) => ({ text }))
  for await (const { index, text, tokenIds, finishReason } of model.generateMany(requests, {
    adapter,
    temperature: 1,
    maxNewTokens,
    seed: 1,
  })) {
    texts[index] = text
    const ended = finishReason === 'stop' ? [tokenizer.eosId!] : []
    completions[index] = {
      completionIds: Int32Array.from(tokenIds),
      withEnd: Int32Array.from([...tokenIds, ...ended]),
    }
  }
  /** Log-probabilities of all tokens of all completions. */
  const logps = async (of: string | null, idsOf: (completion: (typeof completions)[number]) => Int32Array) => {
    const rows = prompts.flatMap((prompt, i) => {
      const ids = idsOf(completions[i]!)
      if (ids.length === 0) return [] // an empty completion has no token to measure
      const before = tokenizer.encode(prompt)
      return [{ inputIds: [...before, ...ids], labels: [...Array.from(before, () => -100), ...ids] }]
    })
    return (await model.logps(rows, { adapter: of })).reduce(
      (total, { nll, tokens }) => ({ logp: total.logp - nll, tokens: total.tokens + tokens }),
      { logp: 0, tokens: 0 },
    )
  }
  const own = await logps(adapter, ({ withEnd }) => withEnd)
  const reference = await logps('sft', ({ withEnd }) => withEnd)
  const base = await logps(null, ({ completionIds }) => completionIds)
  return {
    rewards: texts.map(goldReward),
    klPerToken: (own.logp - reference.logp) / own.tokens,
    distinct2: distinct2(completions),
    basePerplexity: Math.exp(-base.logp / base.tokens),
  }
}

/** Share of the prompts on which `ours` has the higher reward. */
const winRate = (ours: readonly number[], theirs: readonly number[]) =>
  mean(ours.map((own, i) => (own > theirs[i]! ? 1 : own === theirs[i] ? 0.5 : 0)))

async function runSeed(seed: number, folder: string, goldReward: (text: string) => number) {
  const names = ['sft', 'reward', 'ppo', 'grpo', 'dpo']
  const recipe = await loadRecipeFile(recipePath, { set: names.map((name) => `stages.${name}.stage.seed=${seed}`) })
  if (!isPipeline(recipe)) throw new Error(`${recipePath} is not a recipe of several stages`)
  const run = runPipeline(recipe, { runDir: join(folder, `seed-${seed}`) })
  let last = 0
  for await (const event of run) {
    if (event.type === 'stageStart') process.stderr.write(`[align] seed ${seed}, ${event.stage}\n`)
    if (event.type === 'step' && Date.now() - last > 15_000) {
      last = Date.now()
      process.stderr.write(`[align]   step ${event.step}, ${Math.round(event.etaSeconds)} s left\n`)
    }
  }
  const result: PipelineResult = await run.result
  const model = await openModel({ base: String(recipe.base) })
  try {
    const prompts: string[] = []
    const { heldOut } = await recipe.stages.ppo!.data!.dataset!.load({ seed, log: () => {} })
    for await (const { prompt } of heldOut ?? []) prompts.push(String(prompt))
    const measured: Record<string, Measured> = {}
    for (const name of ['sft', 'ppo', 'grpo', 'dpo']) {
      await model.loadAdapter(name, result.stages[name]!.adapter!)
      measured[name] = await measure(model, name, prompts, goldReward)
    }
    const sft = measured.sft!
    const online = (name: string) => {
      const own = measured[name]!
      return {
        rewardGain: (mean(own.rewards) - mean(sft.rewards)) / deviation(sft.rewards),
        klPerToken: own.klPerToken,
        distinct2Ratio: own.distinct2 / sft.distinct2,
        basePerplexityRatio: own.basePerplexity / sft.basePerplexity,
      }
    }
    const after = (name: string) => result.stages[name]!.after!.metrics
    return {
      rewardModel: { accuracy: after('reward')['eval/accuracy']! },
      dpo: { accuracy: after('dpo')['eval/rewards/accuracies']!, winRate: winRate(measured.dpo!.rewards, sft.rewards) },
      ppo: online('ppo'),
      grpo: online('grpo'),
      heldOutPrompts: prompts.length,
      secondsPerSeed: Object.values(result.stages).reduce((sum, { totalSeconds }) => sum + totalSeconds, 0),
      stageSeconds: Object.fromEntries(Object.entries(result.stages).map(([name, s]) => [name, s.totalSeconds])),
    }
  } finally {
    await model.close()
  }
}

type Tree = { [key: string]: number | Tree }

/** Means over the seeds, entry by entry. */
function meanOf(trees: readonly Tree[]): Tree {
  return Object.fromEntries(
    Object.entries(trees[0]!).map(([key, first]) => [
      key,
      typeof first === 'number'
        ? mean(trees.map((tree) => tree[key] as number))
        : meanOf(trees.map((tree) => tree[key] as Tree)),
    ]),
  )
}

export async function benchAlign(argv: string[]): Promise<Record<string, unknown>> {
  const { values } = parseArgs({
    args: argv,
    options: { seeds: { type: 'string', default: '1' }, 'run-dir': { type: 'string' }, json: { type: 'boolean' } },
  })
  const seeds = Number(values.seeds)
  if (!Number.isInteger(seeds) || seeds < 1) throw new Error(`--seeds ${values.seeds}: give a whole number from 1`)
  const folder = values['run-dir'] ?? mkdtempSync(join(tmpdir(), 'espalier-align-'))
  process.stderr.write(`[align] in ${folder}\n`)
  const { goldReward } = (await import(pathToFileURL(join(packageRoot(), 'dist', 'datasets', 'valence.js')).href)) as {
    goldReward(text: string): number
  }
  const results: Awaited<ReturnType<typeof runSeed>>[] = []
  for (let seed = 0; seed < seeds; seed++) results.push(await runSeed(seed, folder, goldReward))
  return {
    judge: 'goldReward of datasets/valence.ts, a rule',
    seeds,
    runDir: folder,
    ...meanOf(results as unknown as Tree[]),
  }
}
