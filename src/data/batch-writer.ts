// Documents of a token file on their way to disk: gathered in buffers of fixed size and written by record batch (stop 6 of a run).
import type { TokenFileWriter } from './arrow.js'
import type { EncodedRow } from './row-types/row-type.js'

const batchTokens = 1 << 17
const batchRows = 4096

/** Gathers documents and writes them by record batch. */
export class BatchWriter {
  readonly #writer: TokenFileWriter
  readonly #inputIds: Int32Array
  readonly #labels: Int32Array
  readonly #offsets = new Int32Array(batchRows + 1)
  readonly #rows = new Int32Array(batchRows)
  readonly #values: Float64Array | undefined
  // As bytes: strings that wait for the flush would end up in the old generation.
  #places = Buffer.alloc(batchRows * 32)
  readonly #placeOffsets = new Int32Array(batchRows + 1)
  #count = 0

  constructor(writer: TokenFileWriter, maxLength: number, hasValues: boolean) {
    this.#writer = writer
    this.#values = hasValues ? new Float64Array(batchRows) : undefined
    this.#inputIds = new Int32Array(batchTokens + maxLength)
    this.#labels = new Int32Array(batchTokens + maxLength)
  }

  add(document: EncodedRow, row: number, place: string, value = Number.NaN): void {
    const count = this.#count++
    const offset = this.#offsets[count]!
    this.#inputIds.set(document.inputIds, offset)
    this.#labels.set(document.labels, offset)
    this.#offsets[count + 1] = offset + document.inputIds.length
    this.#rows[count] = row
    if (this.#values) this.#values[count] = value
    const placeAt = this.#placeOffsets[count]!
    while (placeAt + place.length * 3 > this.#places.length) this.#places = Buffer.concat([this.#places, this.#places])
    this.#placeOffsets[count + 1] = placeAt + this.#places.write(place, placeAt)
    if (this.#count === batchRows || this.#offsets[count + 1]! >= batchTokens) this.flush()
  }

  flush(): void {
    const numRows = this.#count
    if (numRows === 0) return
    const tokens = this.#offsets[numRows]!
    this.#writer.write({
      numRows,
      offsets: this.#offsets.subarray(0, numRows + 1),
      inputIds: this.#inputIds.subarray(0, tokens),
      labels: this.#labels.subarray(0, tokens),
      rows: this.#rows.subarray(0, numRows),
      places: this.#places.subarray(0, this.#placeOffsets[numRows]!),
      placeOffsets: this.#placeOffsets.subarray(0, numRows + 1),
      ...(this.#values ? { values: this.#values.subarray(0, numRows) } : {}),
    })
    this.#count = 0
  }
}
