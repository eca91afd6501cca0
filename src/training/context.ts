// What a stage is given: the resolved recipe, its folder, and what opens base, data and the compiled step.
// The parts come from other rooms; a stage only joins them.
import type { DataReport, PreviewRow } from '../data/index.js'
import type { ChoiceRow, Document } from './evaluate.js'
import type { EndReason, EvaluationResult, TrainingEvent } from './events.js'
import type { StepLoader } from './loop.js'
import type { Objective } from './objective.js'
import type { PreparedOnline, PrepareOnlineOptions } from './prepare-online.js'
import type { MicroBatch, TrainProgram } from './program.js'

export interface RunContext {
  /** Absent while only planning. */
  readonly runDir: string | undefined
  readonly recipe: ResolvedRecipe
  readonly resume: { fallback: boolean } | undefined
  readonly signal: AbortSignal | undefined
  emit(event: TrainingEvent): void
  /** Opens base, data and program; stages close the result. */
  prepare(options: PrepareOptions): Promise<PreparedRun>
  /** The same for stages that sample. */
  prepareOnline(options: PrepareOnlineOptions): Promise<PreparedOnline>
}

/** The recipe after validation: names and plain data, what `recipe.json` of a run directory holds. */
export interface ResolvedRecipe {
  readonly name: string
  readonly base: unknown
  readonly adapter: unknown
  readonly data: unknown
  readonly stage: { readonly type: string; readonly [key: string]: unknown }
  readonly runtime?: unknown
}

export type RowUnit = 'documents' | 'pairs' | 'unpaired'

/** `base`: no adapter; `start`: the adapter that training starts from; otherwise a PEFT folder. */
export type ReferenceModel = 'base' | 'start' | { readonly adapter: string }

export interface PrepareOptions {
  maxLength: number
  packing: boolean
  shuffle: boolean
  microBatchSize: number
  gradientAccumulationSteps: number
  epochs: number
  /** Wins over `epochs`. */
  maxSteps: number | undefined
  seed: number
  startAdapter: string | undefined
  /** What a row of the data is: documents, pairs (chosen, rejected), or completions with a label. */
  rows: RowUnit
  objective: Objective
  /** The most of each of the objective's own dimensions. */
  maxDims?: Readonly<Record<string, number>>
  /** The frozen model that log-probabilities are compared with; absent: none is needed. */
  reference?: ReferenceModel
  precision: 'fast' | 'strict'
  recompute: 'auto' | 'all' | 'none'
  memoryBudgetMb: number | undefined
  maxEvaluationRows: number | undefined
  signal?: AbortSignal
}

export interface HeldOutGroup {
  readonly documents: Document[]
  readonly numbers: Readonly<Record<string, number>>
}

export interface PreparedRun {
  readonly program: TrainProgram
  readonly loader: StepLoader
  readonly totalSteps: number
  /** Tokens of the largest micro-batch: buffers are made for it, evaluation stays below it. */
  readonly maxTokens: number
  readonly heldOut: {
    readonly documents: Document[]
    readonly choices: ChoiceRow[]
    /** Rows of preference data: pairs (chosen, rejected), or single completions. */
    readonly groups: HeldOutGroup[]
  }
  /** Every row of the training data once, in order, in micro-batches of at most so many rows. */
  trainingRows(microBatchSize: number): Iterable<MicroBatch>
  /** Where documents of a batch came from, for messages. */
  placesOf?(documents: number[]): string[]
  readonly base: string
  readonly device: string
  readonly isa: string
  readonly versions: Record<string, string>
  /** Hashes of what the run depends on: base, data, tokenizer, and the reference where it is an adapter. */
  readonly hashes: Record<string, string>
  exportAdapter(folder: string): void | Promise<void>
  measureCeiling?(): Promise<number>
  /** Continuation of a prompt, for the samples panel. */
  generate?(prompt: string, options: { maxNewTokens: number; adapter: boolean }): Promise<string>
  /** What became of the rows, and some of them as the model will see them. */
  describeData?(): DataDescription
  close(): void | Promise<void>
}

export interface DataDescription {
  train: DataReport
  heldOut: DataReport | undefined
  rows: PreviewRow[]
}

export interface StageOutcome {
  reason: EndReason
  step: number
  totalSteps: number
  trainLoss: number | undefined
  before: EvaluationResult | undefined
  after: EvaluationResult | undefined
  best: EvaluationResult | undefined
  adapter: string | undefined
  trainSeconds: number
  tokensPerSecond: number
}
