// The simulation over a recipe's data: training pairs with known answers to choose from, held-out ones to be judged by.
import { readComparisons } from '../../data/index.js'
import type { Listener } from '../events.js'
import { hasHeldOut, type TrainableRecipe } from '../prepare.js'
import { type EncodedPairs, encodePairs, featuresOfPairs, type OpenPairs, openPairs, spaceOfFeatures } from './pairs.js'
import { type LabelledPairs, type SimulationOptions, type SimulationResult, simulateAnnotation } from './simulate.js'

export interface SimulateRecipeOptions extends Pick<SimulationOptions, 'seeds' | 'targetShare' | 'signal'> {
  /** Use so many training pairs at most. Default: all. */
  readonly maxPairs?: number | undefined
  readonly emit?: Listener | undefined
}

export interface RecipeSimulation extends SimulationResult {
  readonly recipe: string
  readonly base: string
  readonly data: string
}

/** @throws where the data has no held-out split, or does not say which answer is better */
export async function simulateRecipe(
  recipe: TrainableRecipe,
  options: SimulateRecipeOptions = {},
): Promise<RecipeSimulation> {
  const { signal, maxPairs, emit = () => {} } = options
  const opened = await openPairs(recipe, emit, signal)
  try {
    const { train, heldOut } = opened.sources
    if (!heldOut || !(await hasHeldOut(recipe.data, opened.seed))) {
      throw new Error(`${train.name}: a simulation is judged on held-out pairs; give the recipe a held-out split`)
    }
    const { pairs } = recipe.data
    const known = async (source: typeof train, most?: number) => {
      const found = await readComparisons(source, { pairs, maxPairs: most, signal })
      const labelled = found.filter((comparison) => comparison.known !== undefined)
      return encodePairs(opened, labelled, emit)
    }
    const pool = await known(train, maxPairs)
    const judged = await known(heldOut)
    const [poolPairs, judgedPairs] = await describePairs(opened, [pool, judged], emit, signal)
    const result = await simulateAnnotation(poolPairs, judgedPairs, {
      seeds: options.seeds,
      targetShare: options.targetShare,
      signal,
      onProgress: (done, total) => emit({ type: 'progress', task: 'simulating', done, total, unit: 'rounds' }),
    })
    return { recipe: recipe.name, base: opened.name, data: train.name, ...result }
  } finally {
    await opened.close()
  }
}

/** What heads see of training pairs and of held-out ones, in the space of the former, and the known answers. */
async function describePairs(
  { base, seed }: OpenPairs,
  [pool, judged]: readonly [EncodedPairs, EncodedPairs],
  emit: Listener,
  signal: AbortSignal | undefined,
): Promise<[LabelledPairs, LabelledPairs]> {
  const features = await featuresOfPairs(base, [...pool.documents, ...judged.documents], emit, signal)
  const [poolFeatures, judgedFeatures] = [
    features.slice(0, pool.documents.length),
    features.slice(pool.documents.length),
  ]
  const space = await spaceOfFeatures(poolFeatures, seed, emit, signal)
  const labelled = async ({ comparisons }: EncodedPairs, own: typeof features): Promise<LabelledPairs> => ({
    differences: await space.differences(own, signal),
    targets: comparisons.map(({ known }) => known!),
  })
  return [await labelled(pool, poolFeatures), await labelled(judged, judgedFeatures)]
}
