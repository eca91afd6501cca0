// What annotation stands on, from a recipe: the pairs of its data as documents, over the recipe's base, and what the base knows of
// them. Rows that are prompts alone get two answers each, sampled from the base or an adapter.
import {
  type ComparedDocument,
  type Comparison,
  compareAnswers,
  type EncodeContext,
  encodeComparison,
  readPrompts,
  type Side,
} from '../../data/index.js'
import { Engine } from '../../inference/engine.js'
import { LanguageModel } from '../../inference/language-model.js'
import { type LoadedBase, loadBase } from '../../models/loaded-base.js'
import type { RunContext } from '../context.js'
import { openParts, openTokenizer, type Sources, sourcesOf, type TrainableRecipe } from '../prepare.js'
import { FeatureSpace } from './feature-space.js'
import { completionFeatures } from './features.js'

/** A base with the pairs of a recipe's data. */
export interface OpenPairs {
  readonly name: string
  readonly base: LoadedBase
  readonly sources: Sources
  readonly context: EncodeContext
  readonly seed: number
  close(): Promise<void>
}

export async function openPairs(
  recipe: TrainableRecipe,
  emit: RunContext['emit'],
  signal: AbortSignal | undefined,
): Promise<OpenPairs> {
  const { found, runtime, opened, closing, closeAll } = await openParts(recipe, signal, emit)
  try {
    const base = await loadBase(runtime, opened)
    closing.push(() => base.close())
    const { data } = recipe
    const { seed = 0 } = recipe.stage as { seed?: number }
    const { tokenizer, template } = openTokenizer(opened, data.chatTemplate)
    return {
      name: found.name,
      base,
      sources: sourcesOf(data, seed, emit, signal),
      context: {
        tokenizer,
        template,
        assistantTurns: data.assistantTurns ?? 'all',
        appendEos: data.appendEos ?? true,
        templateVariables: data.templateVariables,
      },
      seed,
      close: closeAll,
    }
  } catch (error) {
    await closeAll()
    throw error
  }
}

export interface EncodedPairs {
  readonly comparisons: Comparison[]
  readonly documents: [ComparedDocument, ComparedDocument][]
}

/** Leaves out pairs that the base cannot read, and says so. */
export function encodePairs(
  { base, context }: OpenPairs,
  comparisons: readonly Comparison[],
  emit: RunContext['emit'],
): EncodedPairs {
  const maxTokens = base.config.maxPositionEmbeddings
  const fitting = comparisons
    .map((comparison) => ({ comparison, documents: encodeComparison(comparison, context) }))
    .filter(({ documents }) => documents.every(({ inputIds }) => inputIds.length <= maxTokens))
  const tooLong = comparisons.length - fitting.length
  if (tooLong > 0) {
    const message = `${tooLong} of ${comparisons.length} pairs are longer than the ${maxTokens} tokens that this base takes and are left out`
    emit({ type: 'warning', message })
  }
  return {
    comparisons: fitting.map(({ comparison }) => comparison),
    documents: fitting.map(({ documents }) => documents),
  }
}

/** Features of both sides of every pair. */
export async function featuresOfPairs(
  base: LoadedBase,
  documents: EncodedPairs['documents'],
  emit: RunContext['emit'],
  signal: AbortSignal | undefined,
): Promise<[Float32Array, Float32Array][]> {
  const features = await completionFeatures(base, documents.flat(), {
    signal,
    onProgress: (done, total) =>
      emit({
        type: 'progress',
        task: 'reading the pairs',
        done: Math.floor(done / 2),
        total: total / 2,
        unit: 'pairs',
      }),
  })
  return documents.map((_, i) => [features[2 * i]!, features[2 * i + 1]!])
}

/** The space that the heads compare completions in, from their features. */
export function spaceOfFeatures(
  features: readonly (readonly [Float32Array, Float32Array])[],
  seed: number,
  emit: RunContext['emit'],
  signal: AbortSignal | undefined,
): Promise<FeatureSpace> {
  return FeatureSpace.fit(features.flat(), {
    seed,
    signal,
    onProgress: (done, total) =>
      emit({ type: 'progress', task: 'finding what sets answers apart', done, total, unit: 'passes' }),
  })
}

export interface SampleOptions {
  readonly maxPairs: number
  readonly maxNewTokens: number
  /** A PEFT folder; absent: the base answers. */
  readonly adapter?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** Two different answers to each prompt; the same recipe samples the same ones. */
export async function samplePairs(
  { name, base, context, seed, sources }: OpenPairs,
  options: SampleOptions,
  emit: RunContext['emit'],
): Promise<Comparison[]> {
  const { tokenizer, template, templateVariables } = context
  const { adapter, maxPairs, maxNewTokens, signal } = options
  const engine = await Engine.open({ base })
  const model = new LanguageModel({ name, dir: '', base, tokenizer, template, engine })
  try {
    if (adapter !== undefined) {
      await model.loadAdapter('annotated', adapter)
      model.defaultAdapter = 'annotated'
    }
    const maxPromptLength = engine.maxSequenceTokens - maxNewTokens
    const source = sources.train
    const { prompts } = await readPrompts({
      source,
      tokenizer,
      template,
      templateVariables,
      maxPromptLength,
      maxRows: maxPairs,
      signal,
    })
    const answers = prompts.map((): string[] => [])
    let done = 0
    const asked = prompts.map(({ ids }) => ({ ids }))
    for await (const { index, text } of model.generateMany(asked, {
      n: 2,
      temperature: 1,
      seed,
      maxNewTokens,
      signal,
    })) {
      answers[index]!.push(text)
      emit({ type: 'progress', task: 'sampling answers', done: ++done, total: 2 * prompts.length, unit: 'answers' })
    }
    const pairs = prompts.flatMap(({ row, place }, i) => {
      const [first, second] = answers[i]!.map(
        (text): Side => (typeof row.prompt === 'string' ? text : [{ role: 'assistant', content: text }]),
      )
      const isSame = answers[i]![0] === answers[i]![1] || answers[i]!.some((text) => text.trim() === '')
      return isSame ? [] : [compareAnswers(row.prompt as Side, [first!, second!], { tools: row.tools, place })]
    })
    if (pairs.length < prompts.length) {
      const message = `${prompts.length - pairs.length} of ${prompts.length} prompts got twice the same answer, or an empty one, and are left out`
      emit({ type: 'warning', message })
    }
    return pairs
  } finally {
    await model.close()
  }
}
