// What a training step minimises (stop 8): from what a head reads off the hidden states to one scalar. A stage defines
// its objective, names the inputs that it fills per micro-batch, and reads back the outputs.
import type { Graph, Shape, Value } from '../compiler/graph.js'

/** What an objective is built over; M labelled rows. */
export interface ObjectiveContext {
  readonly graph: Graph
  /** Log-probability of each row's label and entropy in nats, f32 [M]; of the head `logProbs`. */
  readonly logps: Value
  readonly entropy: Value
  /** Σ_v p_v² of each row, as its logarithm, f32 [M], without a gradient; of the head `logProbs`. Costs a pass over the head. */
  logSumSquares(): Value
  /** Scalar of each row, f32 [M]; of the head `score`. */
  readonly scores: Value
  /** An input of the graph's float type, filled from `MicroBatch.inputs` (or by the program, see `programInputs`). */
  input(name: string, shape: Shape): Value
  /** A result by name, read from `AccumulateResult.outputs`. */
  output(name: string, value: Value): void
}

export interface Objective {
  /** Which results of the head `build` may use. */
  readonly head: 'logProbs' | 'score'
  /** Logits are divided by it, 1 by default: that of sampling, where the rows were sampled. */
  readonly temperature?: number
  /** The scalar that is minimised: a sum over what the micro-batch holds, scaled for the whole optimizer step. */
  build(context: ObjectiveContext): Value
}

/** Inputs that the program fills from the options of a step: the scale once [1], or for every row [M]. */
export const programInputs = { lossScale: 'lossScale', lossWeights: 'lossWeights' } as const
