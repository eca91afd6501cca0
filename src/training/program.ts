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
  /**
   * Scoring only: explicit targets instead of `labels`. `logps[i]` is then that of token `labels[i]` after position
   * `rows[i]`; rows ascend and may repeat, so that several answers are compared behind one prompt.
   */
  targets?: { rows: Int32Array; labels: Int32Array } // [M] each
}

export interface AccumulateOptions {
  /** Zeroes the gradients before adding. */
  first: boolean
  /** 1 / target tokens of the whole optimizer step. */
  lossScale: number
  /** Optimizer step that keys the counter-based randomness. */
  rngStep: number
  signal?: AbortSignal
}

export interface AccumulateResult {
  /** Sum of token NLL times `lossScale`. */
  lossSum: number
  nllSum: number
  tokens: number
  /** Per labelled row, in order. */
  logps?: Float32Array
  entropySum?: number
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
  /** Per labelled row, in order. */
  logps: Float32Array
  nllSum: number
  tokens: number
}

export interface TrainProgram {
  readonly layout: AdapterLayout
  /** Live native memory: read for a checkpoint, written for a resume. All of `layout.length`. */
  readonly params: Float32Array
  readonly adamM: Float32Array
  readonly adamV: Float32Array
  readonly grads: Float32Array
  /** Forward and backward of one micro-batch; adds its gradients into `grads`. */
  accumulate(batch: MicroBatch, options: AccumulateOptions): Promise<AccumulateResult>
  /** Clips and applies the optimizer; `gradNorm` is the norm before clipping. A non-finite norm changes nothing. */
  update(hyper: UpdateHyper): Promise<{ gradNorm: number }>
  /** Forward only. `adapter: false` scores the base alone. */
  score(batch: MicroBatch, options?: { adapter?: boolean }): Promise<ScoreResult>
  /** Bytes of all planned buffers, weights' mapping included. */
  readonly plannedBytes: number
  /** Floating-point operations per token of one optimizer step over a document of `tokens`. */
  flopsPerToken(tokens: number): number
  close(): void
}
