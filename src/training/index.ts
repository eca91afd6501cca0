// What the training room offers to the SDK and to recipes.
import type { Listener } from './events.js'
import { type PipelineRun, type PipelineStage, startPipeline } from './pipeline.js'
import type { PlanReport } from './plan.js'
import { prepareRun, type TrainableRecipe } from './prepare.js'
import { prepareOnline } from './prepare-online.js'
import { type Run, type RunOptions, startPlan, startRun } from './run.js'

const prepare = { offline: prepareRun, online: prepareOnline }

/** Trains as the recipe says: an async iterable of events, with the result as a promise. */
export function run(recipe: TrainableRecipe, options: RunOptions = {}): Run {
  return startRun(recipe, prepare, options)
}

/** Runs several stages, each from the results of earlier ones; finished ones with the same inputs are skipped. */
export function runStages(
  name: string,
  stages: readonly PipelineStage[],
  options: Omit<RunOptions, 'resume'> = {},
): PipelineRun {
  return startPipeline(name, stages, prepare, options)
}

/** What a run of the recipe would do and cost: steps, memory, time. Trains nothing and writes no run directory. */
export function plan(
  recipe: TrainableRecipe,
  options: { signal?: AbortSignal; emit?: Listener } = {},
): Promise<PlanReport> {
  return startPlan(recipe, prepare, options)
}

export { openAdapter, type RunAdapter } from './adapter.js'
export type { Annotator, AnnotatorStatus, Order } from './annotation/annotator.js'
export { type ExportResult, type ExportType, exportAnnotations, exportTypes } from './annotation/export.js'
export { type Annotation, AnnotationLogError, type Label, labels, readAnnotations } from './annotation/log.js'
export { type AnnotationOptions, type AnnotationSession, openAnnotation } from './annotation/open.js'
export { type RecipeSimulation, type SimulateRecipeOptions, simulateRecipe } from './annotation/simulate-recipe.js'
export type { Estimate } from './bootstrap.js'
export { CheckpointError, listCheckpoints } from './checkpoint.js'
export {
  type ChoiceResult,
  type ChoiceRow,
  type Document,
  evaluateChoices,
  evaluateLoss,
  type HeldOutLoss,
} from './evaluate.js'
export {
  type AdapterEvaluation,
  type EvaluateAdapterOptions,
  evaluateAdapter,
  type MetricEstimates,
} from './evaluate-adapter.js'
export type * from './events.js'
export { type GraphName, graphNames, type InspectedGraph, type InspectGraphOptions, inspectRecipe } from './inspect.js'
export { type LossName, losses, lossNames } from './losses/index.js'
export { NonFiniteError } from './non-finite.js'
export { optimizerSchema, optimizers } from './optimizers.js'
export type { PipelineResult, PipelineRun, PipelineStage } from './pipeline.js'
export type { MemoryEstimate, PlanReport, TimeEstimate } from './plan.js'
export { type DataOptions, type EncodingOptions, prepareData, prepareRun, type TrainableRecipe } from './prepare.js'
export type { AdapterLayout, MicroBatch, TrainProgram } from './program.js'
export { type Run, type RunOptions, readReport } from './run.js'
export { hashRecipe } from './run-directory.js'
export { learningRateAt, type ScheduleName, type ScheduleOptions, scheduleSchema, schedules } from './schedules.js'
export { type StageName, type StageOptions, stageSchema, stages } from './stages/index.js'
export { openTrainProgram, type TrainProgramOptions } from './step.js'
