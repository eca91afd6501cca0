// The SDK: everything a program, a recipe or a dataset may import from `espalier`.
import { join } from 'node:path'
import type { RunningServer, ServeOptions } from './inference/server/index.js'
import {
  isPipeline,
  type LoadRecipeOptions,
  loadRecipe as loadRecipeWith,
  type PipelineInput,
  RecipeError,
  type RecipeInput,
  type ResolvedPipeline,
  type ResolvedRecipe,
  recipeOfStage,
  resolvePipeline,
  resolveRecipe,
} from './recipe/index.js'
import {
  type AdapterEvaluation,
  type AnnotationOptions,
  type AnnotationSession,
  type EvaluateAdapterOptions,
  evaluateAdapter,
  type InspectedGraph,
  type InspectGraphOptions,
  inspectRecipe,
  type Listener,
  openAnnotation,
  type PipelineRun,
  type PlanReport,
  plan as planTraining,
  type RecipeSimulation,
  type Run,
  type RunOptions,
  runStages,
  run as runTraining,
  type SimulateRecipeOptions,
  simulateRecipe,
  type TrainableRecipe,
} from './training/index.js'

const trainable = (recipe: RecipeInput | ResolvedRecipe) => resolveRecipe(recipe) as unknown as TrainableRecipe

/** Loads a recipe module (.ts, .js) or a JSON file, of one stage or several. @throws RecipeError naming the file, the key and what is meant */
export function loadRecipeFile(
  path: string,
  options: LoadRecipeOptions = {},
): Promise<ResolvedRecipe | ResolvedPipeline> {
  return loadRecipeWith(path, () => import('./index.js'), options)
}

/** The same as a recipe of one stage: of several, the one that `stage` names, or the first. */
export async function loadRecipe(
  path: string,
  { stage, ...options }: LoadRecipeOptions & { stage?: string | undefined } = {},
): Promise<ResolvedRecipe> {
  return chooseStage(await loadRecipeFile(path, options), stage)
}

/**
 * Trains as the recipe says: an async iterable of events, with the result as a promise.
 * @example for await (const event of run(recipe)) if (event.type === 'step') console.log(event.loss)
 * @throws RecipeError at once when the recipe is not valid; everything later rejects `result`
 */
export function run(recipe: RecipeInput | ResolvedRecipe, options: RunOptions = {}): Run {
  return runTraining(trainable(recipe), options)
}

/**
 * Runs a recipe of several stages in one folder, by default `runs/<name>`: stages that are finished there, from the same
 * inputs, are skipped; one that was interrupted goes on.
 * @throws RecipeError at once when the recipe is not valid; everything later rejects `result`
 */
export function runPipeline(
  pipeline: PipelineInput | ResolvedPipeline,
  options: Omit<RunOptions, 'resume'> = {},
): PipelineRun {
  const resolved = resolvePipeline(pipeline)
  const stages = Object.keys(resolved.stages).map((name) => ({
    name,
    recipe: (adapterOf: (stage: string) => string) => trainable(recipeOfStage(resolved, name, adapterOf)),
  }))
  return runStages(resolved.name, stages, options)
}

/**
 * The one stage of a recipe, or the named one of several (default: the first); results of earlier ones are looked for in
 * the folder of the pipeline's run.
 * @throws RecipeError where the recipe has no such stage
 */
export function chooseStage(
  recipe: ResolvedRecipe | ResolvedPipeline,
  stage?: string,
  runDir = join('runs', recipe.name),
): ResolvedRecipe {
  if (!isPipeline(recipe)) {
    if (stage === undefined) return recipe
    throw new RecipeError(`the recipe ${recipe.name} has one stage only: leave out --stage`)
  }
  const names = Object.keys(recipe.stages)
  const name = stage ?? names[0]!
  if (!names.includes(name)) throw new RecipeError(`no stage ${name} in the recipe; there are ${names.join(', ')}`)
  return recipeOfStage(recipe, name, (earlier) => join(runDir, earlier, 'adapter'))
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

/**
 * Opens the preference data of a recipe to be annotated: pairs of answers, shown in an order that teaches most, and an append-only
 * log of what is said of them. The caller closes the session.
 */
export function annotate(
  recipe: RecipeInput | ResolvedRecipe,
  options: AnnotationOptions = {},
): Promise<AnnotationSession> {
  return openAnnotation(trainable(recipe), options)
}

/** Labels that active choice and random order need, over pairs whose answers are known. */
export function simulateAnnotation(
  recipe: RecipeInput | ResolvedRecipe,
  options: SimulateRecipeOptions = {},
): Promise<RecipeSimulation> {
  return simulateRecipe(trainable(recipe), options)
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
  type Comparison,
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
  readableText,
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
  fetchHubDataset,
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
  definePipeline,
  defineRecipe,
  isPipeline,
  isRecipe,
  type LoadRecipeOptions,
  type Pipeline,
  type PipelineInput,
  type Recipe,
  RecipeError,
  type RecipeInput,
  type ResolvedPipeline,
  type ResolvedRecipe,
  recipeSchema,
  resolvePipeline,
  resolveRecipe,
} from './recipe/index.js'
export { diagnose, openRuntime, type Runtime, type RuntimeInfo, type RuntimeOptions } from './runtime/index.js'
export {
  type AdapterEvaluation,
  type Annotation,
  AnnotationLogError,
  type AnnotationOptions,
  type AnnotationSession,
  type Annotator,
  type AnnotatorStatus,
  type EndReason,
  type Estimate,
  type EvaluateAdapterOptions,
  type EvaluationEvent,
  type EvaluationResult,
  type ExportResult,
  type ExportType,
  exportAnnotations,
  exportTypes,
  type GraphName,
  graphNames,
  type InspectedGraph,
  type InspectGraphOptions,
  type Label,
  type Listener,
  labels as annotationLabels,
  type MetricEstimates,
  NonFiniteError,
  type PipelineResult,
  type PipelineRun,
  type PlanReport,
  type ProgressEvent,
  type RecipeSimulation,
  type Run,
  type RunOptions,
  type RunResult,
  type RunStartEvent,
  readAnnotations,
  readReport,
  type SampleEvent,
  type SimulateRecipeOptions,
  type StepEvent,
  scheduleSchema,
  schedules,
  stages,
  type TrainingEvent,
} from './training/index.js'
