// The SDK: everything a program, a recipe or a dataset may import from `espalier`.
import type { RunningServer, ServeOptions } from './inference/server/index.js'
import {
  type LoadRecipeOptions,
  loadRecipe as loadRecipeWith,
  type RecipeInput,
  type ResolvedRecipe,
  resolveRecipe,
} from './recipe/index.js'
import {
  type AdapterEvaluation,
  type EvaluateAdapterOptions,
  evaluateAdapter,
  type InspectedGraph,
  type InspectGraphOptions,
  inspectRecipe,
  type Listener,
  type PlanReport,
  plan as planTraining,
  type Run,
  type RunOptions,
  run as runTraining,
  type TrainableRecipe,
} from './training/index.js'

const trainable = (recipe: RecipeInput | ResolvedRecipe) => resolveRecipe(recipe) as unknown as TrainableRecipe

/** Loads a recipe module (.ts, .js) or a JSON file. @throws RecipeError naming the file, the key and what is meant */
export function loadRecipe(path: string, options: LoadRecipeOptions = {}): Promise<ResolvedRecipe> {
  return loadRecipeWith(path, () => import('./index.js'), options)
}

/**
 * Trains as the recipe says: an async iterable of events, with the result as a promise.
 * @example for await (const event of run(recipe)) if (event.type === 'step') console.log(event.loss)
 * @throws RecipeError at once when the recipe is not valid; everything later rejects `result`
 */
export function run(recipe: RecipeInput | ResolvedRecipe, options: RunOptions = {}): Run {
  return runTraining(trainable(recipe), options)
}

/** What a run of the recipe would do and cost: rows, steps, memory, time. Trains nothing. */
export function plan(
  recipe: RecipeInput | ResolvedRecipe,
  options: { signal?: AbortSignal; emit?: Listener } = {},
): Promise<PlanReport> {
  return planTraining(trainable(recipe), options)
}

/** Evaluates base or adapter on the held-out rows of a recipe. */
export function evaluate(
  recipe: RecipeInput | ResolvedRecipe,
  options: EvaluateAdapterOptions = {},
): Promise<AdapterEvaluation> {
  return evaluateAdapter(trainable(recipe), options)
}

/** The graphs that a run of the recipe compiles, as text. */
export function inspect(
  recipe: RecipeInput | ResolvedRecipe,
  options: InspectGraphOptions = {},
): Promise<InspectedGraph> {
  return inspectRecipe(trainable(recipe), options)
}

/** Starts an OpenAI-compatible server over an open model, which stays the caller's to close. */
export async function serve(options: ServeOptions): Promise<RunningServer> {
  const server = await import('./inference/server/index.js') // nobody else waits for its libraries
  return server.serve(options)
}

export {
  type AnsweredRow,
  type ChatMessage,
  CounterRandom,
  DataError,
  type DataReport,
  type Dataset,
  type DatasetContext,
  type DatasetDefinition,
  type DatasetSplits,
  defineDataset,
  type FormatName,
  fileSource,
  formatNames,
  ignoreIndex,
  isDataset,
  type Metric,
  type PlacedRow,
  type PreviewRow,
  permutation,
  type Row,
  type RowTypeName,
  removeNearDuplicates,
  rowTypeNames,
  rowTypes,
} from './data/index.js'
export {
  createConstraint,
  type EngineRequest,
  type EngineStatistics,
  type FinishReason,
  type GeneratedToken,
  type Generation,
  type GenerationStream,
  type IndexedGeneration,
  LanguageModel,
  type ManyOptions,
  type OpenModelOptions,
  openModel,
  type Prompt,
  type ResponseFormat,
  type RowOptions,
  type SamplingOptions,
  type ScoredRow,
  type TextChunk,
  type TextEngine,
  type TextOptions,
  type TokenChoice,
  type TokenConstraint,
  type TokenStream,
} from './inference/index.js'
export type { RunningServer, ServeOptions, ServerLimits } from './inference/server/index.js'
export { type BaseManifest, type OpenedBase, openBase } from './models/base-directory.js'
export {
  BaseUnavailableError,
  cacheFolder,
  type FetchOptions,
  type FetchProgress,
  knownBases,
  type PreparedBase,
  prepareBase,
  type ResolvedBase,
  resolveBase,
} from './models/fetch.js'
export {
  type ImportFormatName,
  type ImportOptions,
  type ImportProgress,
  type ImportResult,
  importBase,
  importFormats,
} from './models/import.js'
export { architectureOf, architectures } from './models/index.js'
export { type LoraConfig, loraDefaults } from './models/lora-config.js'
export { type AdapterReport, type LoadedAdapter, loadAdapter, peftFiles, readPeftConfig } from './models/peft.js'
export {
  defineRecipe,
  isRecipe,
  type LoadRecipeOptions,
  type Recipe,
  RecipeError,
  type RecipeInput,
  type ResolvedRecipe,
  recipeSchema,
  resolveRecipe,
} from './recipe/index.js'
export { diagnose, openRuntime, type Runtime, type RuntimeInfo, type RuntimeOptions } from './runtime/index.js'
export {
  type AdapterEvaluation,
  type EndReason,
  type Estimate,
  type EvaluateAdapterOptions,
  type EvaluationEvent,
  type EvaluationResult,
  type GraphName,
  graphNames,
  type InspectedGraph,
  type InspectGraphOptions,
  type Listener,
  type MetricEstimates,
  NonFiniteError,
  type PlanReport,
  type ProgressEvent,
  type Run,
  type RunOptions,
  type RunResult,
  type RunStartEvent,
  readReport,
  type SampleEvent,
  type StepEvent,
  scheduleSchema,
  schedules,
  stages,
  type TrainingEvent,
} from './training/index.js'
