// A loss or gradient that is not a number stops the run (stop 12): no step is taken from it, and the error says
// where it came from. Documents are tried one by one, so that the row is named and not only its batch.
import type { AdapterLayout, MicroBatch, TrainProgram } from './program.js'

export interface NonFiniteReport {
  step: number
  /** Dataset rows whose own loss or gradient is not finite; all rows of the step when none alone is. */
  rows: number[]
  /** Where those rows came from, when the data says so. */
  places: string[]
  /** First tensor, in layout order, that holds a value which is not finite. */
  tensor: string | undefined
  quantity: 'loss' | 'gradient'
}

export class NonFiniteError extends Error {
  override name = 'NonFiniteError'
  readonly report: NonFiniteReport
  constructor(report: NonFiniteReport, hint: string) {
    const named = report.places.length > 0 ? report.places : report.rows
    const rows = named.slice(0, 8).join(', ') + (report.rows.length > 8 ? `, … (${report.rows.length} in all)` : '')
    super(
      `step ${report.step}: the ${report.quantity} is not finite; dataset row${report.rows.length === 1 ? '' : 's'} ${rows || 'unknown'}; ` +
        `first bad tensor: ${report.tensor ?? 'none of the adapter (the loss alone)'}. ${hint}`,
    )
    this.report = report
  }
}

/** First tensor of the layout with a value that is not finite. */
export function findNonFinite(layout: AdapterLayout, flat: Float32Array): string | undefined {
  for (const { name, shape, offset } of layout.tensors) {
    const end = offset + shape.reduce((a, b) => a * b, 1)
    for (let i = offset; i < end; i++) if (!Number.isFinite(flat[i]!)) return name
  }
  return undefined
}

/** The documents of a micro-batch, each as a micro-batch of its own. */
export function splitDocuments(batch: MicroBatch): MicroBatch[] {
  const documents: MicroBatch[] = []
  for (let d = 0; d + 1 < batch.cuSeqlens.length; d++) {
    const from = batch.cuSeqlens[d]!
    const to = batch.cuSeqlens[d + 1]!
    documents.push({
      inputIds: batch.inputIds.slice(from, to),
      labels: batch.labels.slice(from, to),
      positionIds: batch.positionIds.slice(from, to),
      cuSeqlens: Int32Array.of(0, to - from),
      documents: batch.documents ? [batch.documents[d]!] : undefined,
    })
  }
  return documents
}

const maxDocumentsTried = 64

/** Finds what went wrong in a step whose loss or gradient norm is not finite. Uses up the gradients. */
export async function diagnose(
  program: TrainProgram,
  microBatches: MicroBatch[],
  step: number,
  lossScale: number,
  placesOf: (rows: number[]) => string[] = () => [],
): Promise<NonFiniteError> {
  const badParameter = findNonFinite(program.layout, program.params)
  const allRows = microBatches.flatMap((batch) => batch.documents ?? [])
  if (badParameter) {
    return new NonFiniteError(
      { step, rows: allRows, places: placesOf(allRows), tensor: badParameter, quantity: 'gradient' },
      'That parameter itself is not finite: start from another adapter or an earlier checkpoint.',
    )
  }
  const rows: number[] = []
  let tensor: string | undefined
  let quantity: NonFiniteReport['quantity'] = 'gradient'
  for (const document of microBatches.flatMap(splitDocuments).slice(0, maxDocumentsTried)) {
    const { lossSum } = await program.accumulate(document, { first: true, lossScale, rngStep: step })
    const bad = findNonFinite(program.layout, program.grads)
    if (Number.isFinite(lossSum) && bad === undefined) continue
    if (!Number.isFinite(lossSum)) quantity = 'loss'
    rows.push(...(document.documents ?? []))
    tensor ??= bad
  }
  const bad = rows.length > 0 ? rows : allRows
  return new NonFiniteError(
    { step, rows: bad, places: placesOf(bad), tensor, quantity },
    'Look at that row with `espalier plan`, or lower the learning rate; the last checkpoint is unharmed.',
  )
}
