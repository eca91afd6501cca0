// An annotation from a recipe: its pairs, the log of what was answered before, and the heads that learn behind the screen.
import { join } from 'node:path'
import { holdsPromptsOnly, readComparisons } from '../../data/index.js'
import type { Listener } from '../events.js'
import type { TrainableRecipe } from '../prepare.js'
import { Annotator, type Order } from './annotator.js'
import { type LabelByRewardOptions, labelByReward } from './label-by-reward.js'
import { AnnotationLog } from './log.js'
import { encodePairs, featuresOfPairs, openPairs, samplePairs, spaceOfFeatures } from './pairs.js'

export interface AnnotationOptions {
  /** The log's file; it goes on where it is there. Default `annotations/<recipe>.jsonl`. */
  readonly log?: string | undefined
  /** Default `active`. */
  readonly order?: Order | undefined
  /** Use so many pairs of the data at most. Default 4,096; of rows that are prompts alone 128. */
  readonly maxPairs?: number | undefined
  /** A PEFT folder: what answers rows that are prompts alone. Default: the base. */
  readonly adapter?: string | undefined
  /** Of a sampled answer. Default 128. */
  readonly maxNewTokens?: number | undefined
  readonly signal?: AbortSignal | undefined
  /** Progress and warnings: while opening, and while pairs are read behind the screen. */
  readonly emit?: Listener | undefined
  /** Called whenever the annotator has news. */
  readonly onChange?: (() => void) | undefined
}

export interface AnnotationSession {
  readonly recipe: string
  readonly base: string
  readonly log: AnnotationLog
  readonly annotator: Annotator
  /** Settles when the heads have what they choose by; at once for random order. */
  readonly ready: Promise<void>
  labelByReward(options: Pick<LabelByRewardOptions, 'reward' | 'labels' | 'signal' | 'onProgress'>): Promise<number>
  close(): Promise<void>
}

const defaultPairs = 4096
const defaultSampledPairs = 128
const defaultNewTokens = 128

/** Opens a recipe's data to be annotated, with the log of what was annotated before. */
export async function openAnnotation(
  recipe: TrainableRecipe,
  options: AnnotationOptions = {},
): Promise<AnnotationSession> {
  const { signal, emit = () => {}, order = 'active' } = options
  const opened = await openPairs(recipe, emit, signal)
  const stopping = new AbortController()
  let log: AnnotationLog | undefined
  try {
    const { train } = opened.sources
    const isPrompts = await holdsPromptsOnly(train)
    const found = isPrompts
      ? await samplePairs(
          opened,
          {
            maxPairs: options.maxPairs ?? defaultSampledPairs,
            maxNewTokens: options.maxNewTokens ?? defaultNewTokens,
            adapter: options.adapter,
            signal,
          },
          emit,
        )
      : await readComparisons(train, { pairs: recipe.data.pairs, maxPairs: options.maxPairs ?? defaultPairs, signal })
    const { comparisons, documents } = encodePairs(opened, found, emit)
    if (comparisons.length === 0) throw new Error(`${train.name}: has no two answers to compare`)
    log = new AnnotationLog(options.log ?? join('annotations', `${recipe.name}.jsonl`), {
      name: recipe.name,
      base: opened.name,
    })
    if (log.cutBytes > 0) {
      emit({ type: 'warning', message: `${log.path}: an answer was cut short when it was written, and is asked again` })
    }
    const annotator = new Annotator({ comparisons, log, order, seed: opened.seed, onChange: options.onChange })
    const learn = async () => {
      if (order === 'random') return
      try {
        const features = await featuresOfPairs(opened.base, documents, emit, stopping.signal)
        const space = await spaceOfFeatures(features, opened.seed, emit, stopping.signal)
        annotator.learn(await space.differences(features, stopping.signal))
      } catch (error) {
        if (!stopping.signal.aborted) throw error
      }
    }
    const ready = learn()
    ready.catch((error) => {
      emit({
        type: 'warning',
        message: `pairs come in random order, for the base could not read them: ${error.message}`,
      })
    })
    const { context } = opened
    const held = log
    return {
      recipe: recipe.name,
      base: opened.name,
      log: held,
      annotator,
      ready,
      labelByReward: async (how) => {
        await ready
        return labelByReward({ ...how, annotator, context })
      },
      async close() {
        stopping.abort()
        await ready.catch(() => {})
        await annotator.close()
        held.close()
        await opened.close()
      },
    }
  } catch (error) {
    log?.close()
    await opened.close()
    throw error
  }
}
