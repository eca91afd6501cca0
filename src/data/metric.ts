// Metrics over what a model answers, written by whoever has the data.
import type { Row } from './row-types/row-type.js'

/** A held-out row and what a model said to it. */
export interface AnsweredRow {
  /** As the dataset gives it, other columns included. */
  readonly row: Row
  /** The answer that the row has. */
  readonly expected: string
  /** The answer of the model, up to where it ended. */
  readonly answer: string
  /** `length`: cut at the limit of tokens. */
  readonly finishReason: 'stop' | 'length'
}

/** A number, or whether something holds, per row; the metric is the mean. */
export type Metric = (answered: AnsweredRow) => number | boolean | Promise<number | boolean>
