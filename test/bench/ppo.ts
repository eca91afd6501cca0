// `bench -- ppo`: an iteration of PPO on the real base. What sampling reaches of the engine's own rate at the same batch
// and lengths, what updates reach of the supervised stage's token rate on the same micro-batches, what is spent beside
// them, and memory against supervised tuning. Rates of engine and supervised steps are of the bare programs. Peaks are each of
// a process of its own that runs a recipe, tokenizer and data included.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createTokenizer } from '../../src/data/index.js'
import { Engine } from '../../src/inference/engine.js'
import { openBase } from '../../src/models/base-directory.js'
import { loadBase } from '../../src/models/loaded-base.js'
import { openRuntime } from '../../src/runtime/index.js'
import { openAdapter } from '../../src/training/adapter.js'
import { type RunResult, run, type StepEvent, type TrainableRecipe } from '../../src/training/index.js'
import type { MicroBatch } from '../../src/training/program.js'
import { benchBase, benchTextIds, openBenchPrograms } from './base.js'
import { childInput, median, reportToParent, runChild } from './process-tree.js'

const batch = 64
const promptTokens = 32
const completionTokens = 48
const microBatch = 12
const steps = 5
const adapter = { rank: 16, alpha: 32 }
const valueRank = 4
const hyper = { learningRate: 1e-5, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0, maxGradNorm: 1 }

interface Task {
  folder: string
  work: string
  kind: 'ppo' | 'engine' | 'sft' | 'tuning'
}
interface Measure {
  /** Tokens per second, by repetition. */
  rates: number[]
  steps: StepEvent[]
  base: string
}

const windowOf = (index: number, length: number) => {
  const text = benchTextIds()
  return Array.from({ length }, (_, i) => text[(index * 131 + i) % text.length]!)
}

/** PPO as a recipe runs it, from fresh adapters; completions never end, so that lengths are known. */
async function runPpo({ folder, work }: Task): Promise<Measure> {
  const opened = openBase(folder)
  const tokenizer = createTokenizer(opened.tokenizerJson, opened.tokenizerConfig)
  const rows = Array.from({ length: batch * steps }, (_, i) => {
    const prompt = tokenizer.decode(Int32Array.from(windowOf(i, promptTokens)))
    return JSON.stringify({ prompt })
  })
  const prompts = join(work, 'prompts.jsonl')
  writeFileSync(prompts, `${rows.join('\n')}\n`)
  // A reward model of no meaning: what counts here is its cost
  const reward = openAdapter(opened, { lora: adapter, seed: 5, baseName: opened.source.name, hasScore: true })
  const values = new Float32Array(reward.layout.length)
  reward.fill(values)
  const rewardFolder = join(work, 'reward')
  reward.save(rewardFolder, values)
  const recipe: TrainableRecipe = {
    name: 'bench-ppo',
    base: folder,
    adapter,
    data: { train: prompts },
    stage: {
      type: 'ppo',
      rewards: [{ model: rewardFolder }],
      value: { rank: valueRank },
      maxSteps: steps,
      promptsPerStep: batch,
      maxPromptLength: promptTokens + 16,
      maxCompletionLength: completionTokens,
      temperature: 1,
      numPpoEpochs: 2,
      numMiniBatches: 2,
      microBatchSize: microBatch,
      learningRate: 1e-6,
    },
  }
  const events: StepEvent[] = []
  const going = run(recipe, { runDir: join(work, 'run') })
  for await (const event of going) if (event.type === 'step') events.push(event)
  const result: RunResult = await going.result
  if (result.reason !== 'completed') throw new Error(`the run ended as ${result.reason}`)
  // The first step touches all memory for the first time
  const timed = events.slice(1)
  return { rates: timed.map(({ tokensPerSecond }) => tokensPerSecond), steps: timed, base: opened.source.name }
}

/** Supervised tuning as a recipe runs it, on micro-batches of the same documents. */
async function runTuning({ folder, work }: Task): Promise<Measure> {
  const opened = openBase(folder)
  const tokenizer = createTokenizer(opened.tokenizerJson, opened.tokenizerConfig)
  const text = (ids: readonly number[]) => tokenizer.decode(Int32Array.from(ids))
  const rows = Array.from({ length: 4 * microBatch }, (_, i) => {
    const ids = windowOf(i, promptTokens + completionTokens)
    return JSON.stringify({ prompt: text(ids.slice(0, promptTokens)), completion: text(ids.slice(promptTokens)) })
  })
  const train = join(work, 'rows.jsonl')
  writeFileSync(train, `${rows.join('\n')}\n`)
  const recipe: TrainableRecipe = {
    name: 'bench-tuning',
    base: folder,
    adapter,
    data: { train },
    stage: { type: 'sft', maxSteps: 4, maxLength: 128, packing: false, microBatchSize: microBatch, learningRate: 1e-6 },
  }
  const result = await run(recipe, { runDir: join(work, 'run') }).result
  if (result.reason !== 'completed') throw new Error(`the run ended as ${result.reason}`)
  return { rates: [], steps: [], base: opened.source.name }
}

/** The engine alone, with an adapter loaded, on as many prompts and tokens. */
async function runEngine({ folder, work }: Task): Promise<Measure> {
  const runtime = await openRuntime()
  const opened = openBase(folder)
  const base = await loadBase(runtime, opened)
  const engine = await Engine.open({
    base,
    maxSequences: batch,
    maxSequenceTokens: promptTokens + completionTokens + 16,
    maxAdapters: 1,
    drafts: null,
  })
  const own = openAdapter(opened, { lora: adapter, seed: 0, baseName: opened.source.name })
  const values = new Float32Array(own.layout.length)
  own.fill(values)
  own.save(join(work, 'adapter'), values)
  await engine.loadAdapter('a', join(work, 'adapter'))
  const rates: number[] = []
  for (let step = 0; step < steps; step++) {
    const begin = performance.now()
    const streams = engine.submitMany(
      Array.from({ length: batch }, (_, i) => ({
        promptIds: windowOf(step * batch + i, promptTokens),
        adapter: 'a',
        sampling: { maxNewTokens: completionTokens, temperature: 1, seed: i },
      })),
    )
    let tokens = 0
    await Promise.all(
      streams.map(async (stream) => {
        for await (const _ of stream) tokens++
      }),
    )
    if (step > 0) rates.push(tokens / ((performance.now() - begin) / 1000))
  }
  await engine.close()
  return { rates, steps: [], base: opened.source.name }
}

/** Supervised steps over micro-batches of the same documents. */
async function runSft({ folder }: Task): Promise<Measure> {
  const length = promptTokens + completionTokens
  const maxTokens = microBatch * length
  const { programs, name } = await openBenchPrograms({ folder, programs: [{ maxTokens, maxDocuments: microBatch }] })
  const [program] = programs
  const rates: number[] = []
  for (let step = 0; step < 8; step++) {
    const documents = Array.from({ length: microBatch }, (_, d) => windowOf(step * microBatch + d, length))
    const made: MicroBatch = {
      inputIds: Int32Array.from(documents.flat()),
      labels: Int32Array.from(
        documents.flatMap((ids) => ids.map((_, i) => (i >= promptTokens - 1 && i + 1 < length ? ids[i + 1]! : -100))),
      ),
      positionIds: Int32Array.from({ length: maxTokens }, (_, i) => i % length),
      cuSeqlens: Int32Array.from({ length: microBatch + 1 }, (_, d) => d * length),
    }
    const begin = performance.now()
    await program!.accumulate(made, { first: true, lossScale: 1 / (microBatch * completionTokens), rngStep: step + 1 })
    await program!.update({ ...hyper, step: step + 1 })
    if (step > 1) rates.push(maxTokens / ((performance.now() - begin) / 1000))
  }
  return { rates, steps: [], base: name }
}

const kinds = { ppo: runPpo, engine: runEngine, sft: runSft, tuning: runTuning }
const file = fileURLToPath(import.meta.url)

export async function benchPpo(): Promise<Record<string, unknown>> {
  const folder = await benchBase()
  const work = mkdtempSync(join(tmpdir(), 'espalier-bench-ppo-'))
  try {
    const measured = async (kind: Task['kind'], part: string) => {
      process.stderr.write(`[ppo] ${kind}\n`)
      const own = mkdtempSync(join(work, `${part}-`))
      return runChild<Measure>(file, { folder, work: own, kind } satisfies Task)
    }
    // Before and after: a machine that slows down in between is seen by both
    const before = { engine: await measured('engine', 'a'), sft: await measured('sft', 'a') }
    const ppo = await measured('ppo', 'b')
    const after = { engine: await measured('engine', 'c'), sft: await measured('sft', 'c') }
    const tuning = await measured('tuning', 'd')
    const metric = (name: string) => median(ppo.result.steps.map(({ metrics }) => metrics![name]!))
    const both = (kind: 'engine' | 'sft') => median([...before[kind].result.rates, ...after[kind].result.rates])
    const rolloutRate = metric('perf/generatedPerSecond')
    const updateRate = median(ppo.result.rates)
    return {
      base: ppo.result.base,
      batch,
      promptTokens,
      completionTokens,
      rolloutTokensPerSecond: rolloutRate,
      engineTokensPerSecond: both('engine'),
      rolloutShare: rolloutRate / both('engine'),
      // Tokens through policy and value model, each counted
      updateTokensPerSecond: updateRate,
      sftTokensPerSecond: both('sft'),
      updateShare: updateRate / both('sft'),
      overheadShare: metric('perf/overheadShare'),
      generationShare: metric('perf/generationShare'),
      scoringShare: metric('perf/scoringShare'),
      ppoPeakMb: ppo.peakRssMb,
      sftPeakMb: tuning.peakRssMb,
      memoryRatio: ppo.peakRssMb / tuning.peakRssMb,
    }
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

const task = childInput<Task>()
if (task && process.argv[1] === file) await reportToParent(() => kinds[task.kind](task))
