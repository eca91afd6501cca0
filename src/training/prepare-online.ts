// Joins the rooms for a stage that samples (stops 5 to 11): base, prompts, the policy and what scores it, all over one
// base and one workspace.
import {
  datasetSource,
  type EncodedPrompt,
  fileSource,
  PromptLoader,
  type RowSource,
  readPrompts,
} from '../data/index.js'
import { viewTensor } from '../models/adapter-layout.js'
import { type LoadedBase, loadBase } from '../models/loaded-base.js'
import { openAdapter, openFrozen } from './adapter.js'
import type { ReferenceModel, ResolvedRecipe, RunContext } from './context.js'
import type { Objective } from './objective.js'
import { RolloutEngine } from './online/rollout.js'
import { ceilingProbeMs, openParts, openReference, openTokenizer, type TrainableRecipe } from './prepare.js'
import { openRewards } from './rewards/index.js'
import type { RewardSource } from './rewards/reward.js'
import { openFrozenScorer } from './scorer.js'
import type { RewardSpec } from './stages/online-schema.js'
import { type LiveProgram, openTrainProgram } from './step.js'
import { packageVersion } from './version.js'

export interface PrepareOnlineOptions {
  maxPromptLength: number
  promptTruncation: 'drop' | 'keepEnd'
  maxCompletionLength: number
  promptsPerStep: number
  numGenerations: number
  microBatchSize: number
  shuffle: boolean
  seed: number
  startAdapter?: string | undefined
  objective: Objective
  reference: ReferenceModel | undefined
  /** Of the value model; absent: none. */
  value: { objective: Objective; startAdapter: string | undefined; rank: number | undefined } | undefined
  rewards: readonly RewardSpec[]
  maxEvaluationRows: number
  precision: 'fast' | 'strict'
  recompute: 'auto' | 'all' | 'none'
  memoryBudgetMb?: number | undefined
  signal?: AbortSignal | undefined
}

export interface PreparedOnline {
  readonly policy: LiveProgram
  readonly value: LiveProgram | undefined
  readonly engine: RolloutEngine
  readonly rewards: readonly RewardSource[]
  readonly prompts: PromptLoader
  readonly heldOut: readonly EncodedPrompt[]
  /** Most tokens of a micro-batch. */
  readonly maxTokens: number
  readonly base: string
  readonly device: string
  readonly isa: string
  readonly versions: Record<string, string>
  readonly hashes: Record<string, string>
  exportAdapter(folder: string): void | Promise<void>
  measureCeiling?(): Promise<number>
  close(): Promise<void>
}

const mib = 2 ** 20

function promptSources(recipe: TrainableRecipe, seed: number, emit: RunContext['emit']) {
  const { data } = recipe
  if (data.dataset) {
    const { dataset } = data
    const context = { seed, log: (message: string) => emit({ type: 'warning', message }) }
    const has = async () => (await dataset.load({ ...context })).heldOut !== undefined
    return { train: datasetSource(dataset, 'train', context), heldOut: datasetSource(dataset, 'heldOut', context), has }
  }
  const how = { ...(data.format ? { format: data.format } : {}), ...(data.columns ? { columns: data.columns } : {}) }
  const heldOut: RowSource | undefined = data.heldOut === undefined ? undefined : fileSource(data.heldOut, how)
  return { train: fileSource(data.train!, how), heldOut, has: async () => heldOut !== undefined }
}

/** Opens everything that a stage which samples needs; the caller closes it. */
export async function prepareOnline(
  given: ResolvedRecipe,
  options: PrepareOnlineOptions,
  emit: RunContext['emit'],
): Promise<PreparedOnline> {
  const recipe = given as TrainableRecipe
  const { signal, seed, precision, microBatchSize } = options
  const { found, runtime, opened, closing, closeAll } = await openParts(recipe, signal, emit)
  try {
    const { tokenizer, template } = openTokenizer(opened, recipe.data.chatTemplate)
    const sources = promptSources(recipe, seed, emit)
    const read = (source: RowSource, maxRows?: number) =>
      readPrompts({
        source,
        tokenizer,
        template,
        templateVariables: recipe.data.templateVariables,
        maxPromptLength: options.maxPromptLength,
        truncation: options.promptTruncation,
        maxRows,
        signal,
      })
    const train = await read(sources.train)
    if (train.tooLong > 0) {
      emit({
        type: 'warning',
        message: `${train.tooLong} prompts are longer than maxPromptLength ${options.maxPromptLength} and ${options.promptTruncation === 'drop' ? 'are left out' : 'lost their beginning'}`,
      })
    }
    const heldOut =
      sources.heldOut && (await sources.has()) ? (await read(sources.heldOut, options.maxEvaluationRows)).prompts : []
    const longest = [...train.prompts, ...heldOut].reduce((most, { ids }) => Math.max(most, ids.length), 0)
    const maxSequence = longest + options.maxCompletionLength
    const maxTokens = microBatchSize * (maxSequence + 1) // a completion that was cut is ended for reward models

    const base: LoadedBase = await loadBase(runtime, opened)
    closing.push(() => base.close())
    const adapter = openAdapter(opened, {
      lora: recipe.adapter,
      startAdapter: options.startAdapter,
      seed,
      baseName: opened.source.name,
    })
    if (adapter.lora.useDora) {
      throw new Error(
        'adapter.useDora: sampling reads the adapter in training, and its norms are not kept up to date; use plain LoRA',
      )
    }
    const reference = openReference(opened, options)
    const dims = { Q: microBatchSize }
    const common = {
      base,
      maxTokens,
      maxLossRows: microBatchSize * options.maxCompletionLength,
      maxDocuments: microBatchSize,
      maxDims: dims,
      precision,
      recompute: options.recompute,
      memoryBudgetBytes: options.memoryBudgetMb === undefined ? undefined : options.memoryBudgetMb * mib,
      seed,
    }
    emit({ type: 'progress', task: 'compiling', done: 0, total: 1, unit: 'programs' })
    const policy = await openTrainProgram({
      ...common,
      layout: adapter.layout,
      adapter: adapter.layout.adapter,
      objective: options.objective,
      ...(reference === undefined ? {} : { reference }),
    })
    closing.push(() => policy.close())
    adapter.fill(policy.params)

    let value: LiveProgram | undefined
    if (options.value) {
      const { startAdapter, rank, objective } = options.value
      const own = openAdapter(opened, {
        lora: startAdapter === undefined ? { ...recipe.adapter, ...(rank === undefined ? {} : { rank }) } : {},
        startAdapter,
        seed: seed + 1,
        baseName: opened.source.name,
        hasScore: true,
      })
      value = await openTrainProgram({
        ...common,
        layout: own.layout,
        adapter: own.layout.adapter,
        objective,
        workspace: policy.workspace,
      })
      const program = value
      closing.push(() => program.close())
      own.fill(program.params)
      // A fresh head predicts nothing: values start at zero (The N implementation details of RLHF with PPO, 2023)
      if (startAdapter === undefined) {
        for (const tensor of own.layout.tensors) if (tensor.kind === 'score') viewTensor(program.params, tensor).fill(0)
      }
    }
    const scorerDims = { N: maxTokens, M: common.maxLossRows, S: microBatchSize + 1 }
    const openModel = (folder: string) =>
      openFrozenScorer({
        base,
        head: 'score',
        dims: scorerDims,
        precision,
        workspace: policy.workspace,
        frozen: openFrozen(opened, folder, { hasScore: true }),
      })
    const rewards = await openRewards(options.rewards, { open: openModel, most: { maxTokens, size: microBatchSize } })
    closing.push(() => {
      for (const source of rewards) source.close?.()
    })
    const engine = await RolloutEngine.open({
      base,
      tokenizer,
      adapter: adapter.layout.adapter,
      memory: policy.memory,
      workspace: policy.workspace,
      precision,
      maxSequences: Math.min(64, options.promptsPerStep * options.numGenerations),
      maxSequenceTokens: maxSequence,
    })
    closing.push(() => engine.close())
    emit({ type: 'progress', task: 'compiling', done: 1, total: 1, unit: 'programs' })

    const { info } = runtime
    return {
      policy,
      value,
      engine,
      rewards,
      prompts: new PromptLoader({
        prompts: train.prompts,
        hash: train.hash,
        seed,
        promptsPerStep: options.promptsPerStep,
        shuffle: options.shuffle,
      }),
      heldOut,
      maxTokens,
      base: found.name,
      device: `${info.provider} ${info.isa ?? 'stock'}, ${info.threads} threads`,
      isa: info.isa ?? 'stock',
      versions: { espalier: packageVersion(), node: process.version, onnxruntime: info.ortVersion },
      hashes: { base: opened.source.sha256, tokenizer: tokenizer.hash, prompts: train.hash },
      exportAdapter: (folder) => adapter.save(folder, policy.params),
      ...(info.kernels ? { measureCeiling: async () => (await runtime.measureCeiling(ceilingProbeMs)).gflops } : {}),
      close: closeAll,
    }
  } catch (error) {
    await closeAll()
    throw error
  }
}
