// The compiled training step as loops, stages and tests see it: one model, one adapter, one loss (stop 12 of
// the path of a run). `step.ts` implements it over the runtime; tests implement it in plain arithmetic.

/** One trainable tensor inside the flat adapter slice; `offset` counts fp32 elements. */
export interface LayoutTensor {
  /** PEFT's key, e.g. `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` */
  readonly name: string
  /** Path of the wrapped module, e.g. `model.layers.0.self_attn.q_proj` */
  readonly path: string
  readonly kind: string
  readonly shape: readonly number[]
  readonly offset: number
}

/** Where each trainable tensor lies in the flat buffers (parameters, gradients, both Adam moments). */
export interface AdapterLayout {
  readonly tensors: readonly LayoutTensor[]
  /** Elements of the flat buffers, alignment gaps included. */
  readonly length: number
}

/** Documents laid end to end, no padding. N = tokens, `documents + 1` cumulative lengths. */
export interface MicroBatch {
  inputIds: Int32Array // [N]
  /** Aligned: `labels[i]` is the target at position i (the token after `inputIds[i]`); −100 none. */
  labels: Int32Array // [N]
  positionIds: Int32Array // [N], restarts at every document
  cuSeqlens: Int32Array // [documents + 1]
  /** Dataset rows of the documents, for error messages and randomness. */
  documents?: number[]
  /** Rows of preference data: their numbers, of which each has one document or two (chosen, rejected) here. */
  groups?: number[]
  /** Values of each of these rows, such as `margin` or `label`. */
  numbers?: Readonly<Record<string, ArrayLike<number>>>
  /** Inputs of the objective beside the tokens, by name, and the sizes of their dimensions beside N, M and S. */
  inputs?: Readonly<Record<string, Float32Array>>
  dims?: Readonly<Record<string, number>>
  /**
   * Explicit targets instead of `labels`: value i is then that of token `labels[i]` after position `rows[i]`, or the
   * scalar at that position. Rows ascend; in scoring they may repeat, so that several answers are compared behind one
   * prompt.
   */
  targets?: { rows: Int32Array; labels: Int32Array } // [M] each
}

/** The rows that have a target, and their targets. */
export function targetsOf(batch: MicroBatch): { rows: Int32Array; labels: Int32Array } {
  if (batch.targets) return batch.targets
  const rows: number[] = []
  batch.labels.forEach((label, i) => {
    if (label >= 0) rows.push(i)
  })
  return { rows: Int32Array.from(rows), labels: Int32Array.from(rows, (i) => batch.labels[i]!) }
}

export interface AccumulateOptions {
  /** Zeroes the gradients before adding. */
  first: boolean
  /** 1 / (target tokens, pairs, … whatever the loss is a mean over) of the whole optimizer step. */
  lossScale: number
  /** Optimizer step that keys the counter-based randomness. */
  rngStep: number
  signal?: AbortSignal
}

export interface AccumulateResult {
  /** What the micro-batch adds to the loss of the step. */
  lossSum: number
  /** Labelled rows. */
  tokens: number
  /** Results of head and objective by name (copies): `logps` and `entropy`, or `scores`, [M] each, and others. */
  outputs: Readonly<Record<string, Float32Array>>
}

export interface UpdateHyper {
  learningRate: number
  beta1: number
  beta2: number
  epsilon: number
  weightDecay: number
  /** 0 switches clipping off. */
  maxGradNorm: number
  /** 1-based, for the bias correction. */
  step: number
}

export interface ScoreResult {
  /** Of each labelled row, in order: the log-probability of its label, or the scalar where the head is one. */
  values: Float32Array
}

/** Whose values: those of the adapter in training, of the base alone, or of the frozen reference. */
export type ScoredModel = 'adapter' | 'base' | 'reference'

export interface TrainProgram {
  readonly layout: AdapterLayout
  /** Live native memory: read for a checkpoint, written for a resume. All of `layout.length`. */
  readonly params: Float32Array
  readonly adamM: Float32Array
  readonly adamV: Float32Array
  readonly grads: Float32Array
  /** Forward and backward of one micro-batch; adds its gradients into `grads`. */
  accumulate(batch: MicroBatch, options: AccumulateOptions): Promise<AccumulateResult>
  /** Forward only: what `accumulate` would give, without dropout and without gradients. */
  evaluate(batch: MicroBatch, options: { lossScale: number }): Promise<AccumulateResult>
  /** Clips and applies the optimizer; `gradNorm` is the norm before clipping. A non-finite norm changes nothing. */
  update(hyper: UpdateHyper): Promise<{ gradNorm: number }>
  /** Forward only; by default with the adapter in training. */
  score(batch: MicroBatch, options?: { model?: ScoredModel }): Promise<ScoreResult>
  /** Bytes of all planned buffers, weights' mapping included. */
  readonly plannedBytes: number
  /**
   * Floating-point operations per token of one optimizer step over documents of `tokens`, of which `labelledShare` (by
   * default all) go through the head.
   */
  flopsPerToken(tokens: number, labelledShare?: number): number
  close(): void
}
