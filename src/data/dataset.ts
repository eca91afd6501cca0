// Dataset modules: a module of datasets/ (or of a user) that says what it is, whose it is, and gives rows.
import { DataError } from './errors.js'
import type { Metric } from './metric.js'
import { iterableSource, type RowSource } from './row-source.js'
import type { RowTypeName } from './row-types/index.js'
import type { Row } from './row-types/row-type.js'

/** The mark by which a dataset is known across copies of this package. */
export const datasetBrand = Symbol.for('espalier.dataset')

export interface DatasetContext {
  /** For whatever the dataset draws at random (splits, cuts). */
  seed: number
  signal?: AbortSignal
  log(message: string): void
}

type Rows = AsyncIterable<Row> | Iterable<Row>

export interface DatasetSplits {
  train: Rows
  heldOut?: Rows
}

export interface DatasetDefinition {
  name: string
  description: string
  /** Where the data comes from, and under which terms. */
  source: string
  license: string
  /** The type of its rows; found from the first row where absent. */
  type?: RowTypeName
  /** The possible answers, where held-out rows are judged by comparing the log-probabilities of answers. */
  choices?: readonly string[]
  /** Metrics over the answers to held-out rows, by name: `espalier eval` gives their means. */
  metrics?: Readonly<Record<string, Metric>>
  /** Rows, the same ones for the same context; called once per pass, so keep what is dear to make. */
  load(context: DatasetContext): DatasetSplits | Promise<DatasetSplits>
}

export interface Dataset extends DatasetDefinition {
  readonly [datasetBrand]: true
}

export type SplitName = keyof DatasetSplits

export function defineDataset(definition: DatasetDefinition): Dataset {
  for (const field of ['name', 'description', 'source', 'license'] as const) {
    if (typeof definition[field] !== 'string' || definition[field] === '') {
      throw new Error(
        `defineDataset: "${field}" must be a non-empty string; a dataset states what it is and whose it is`,
      )
    }
  }
  if (typeof definition.load !== 'function')
    throw new Error('defineDataset: "load" must be a function that gives { train, heldOut? }')
  return { ...definition, [datasetBrand]: true }
}

export function isDataset(value: unknown): value is Dataset {
  return typeof value === 'object' && value !== null && (value as Record<symbol, unknown>)[datasetBrand] === true
}

/** One split of a dataset as a row source. */
export function datasetSource(dataset: Dataset, split: SplitName, context: Partial<DatasetContext> = {}): RowSource {
  const full: DatasetContext = { seed: 0, log: () => {}, ...context }
  return iterableSource(`${dataset.name}/${split}`, async function* () {
    const rows = (await dataset.load(full))[split]
    if (!rows)
      throw new DataError(dataset.name, `has no ${split} rows; give it a \`heldOut\` split or evaluate on a file`)
    yield* rows
  })
}
