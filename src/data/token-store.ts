// Reads a token file: lengths of all documents in memory, tokens of one document at a time from the file (the page cache is the
// cache). Serves the loader (stop 7 of a run).
import { closeSync, openSync, readSync } from 'node:fs'
import type { TokenRegion } from './arrow.js'
import { DataError, messageOf } from './errors.js'
import type { EncodedRow } from './row-types/row-type.js'

export class TokenStore {
  readonly path: string
  readonly numRows: number
  /** Tokens of each document. */
  readonly lengths: Int32Array
  /** Documents that belong together: 2 of pairs, the chosen one first. */
  readonly groupSize: number
  /** What the number of each row is, where rows carry one. */
  readonly valueName: string | undefined
  readonly #file: number
  readonly #regions: TokenRegion[]
  /** First document of each region, and the number of documents last. */
  readonly #starts: number[]

  /** @throws where the file ends inside a group */
  constructor(path: string, regions: TokenRegion[], metadata: ReadonlyMap<string, string> = new Map()) {
    this.path = path
    this.groupSize = Number(metadata.get('groupSize') ?? 1)
    this.valueName = metadata.get('valueName')
    this.#regions = regions
    this.#starts = [0]
    for (const region of regions) this.#starts.push(this.#starts.at(-1)! + region.numRows)
    this.numRows = this.#starts.at(-1)!
    if (!(this.groupSize === 1 || this.groupSize === 2) || this.numRows % this.groupSize !== 0) {
      throw new DataError(path, 'ends inside a group of documents; delete it and it will be made again')
    }
    if (this.valueName !== undefined && regions.some(({ values }) => !values)) {
      throw new DataError(path, `lacks its column of ${this.valueName}; delete it and it will be made again`)
    }
    if (regions.some(({ values }) => values && !values.every(Number.isFinite))) {
      throw new DataError(
        path,
        `holds a ${this.valueName ?? 'value'} that is not finite; delete it and it will be made again`,
      )
    }
    this.lengths = new Int32Array(this.numRows)
    for (const [r, { offsets, numRows }] of regions.entries()) {
      for (let i = 0; i < numRows; i++) this.lengths[this.#starts[r]! + i] = offsets[i + 1]! - offsets[i]!
    }
    this.#file = openSync(path, 'r')
  }

  #locate(row: number): { region: TokenRegion; index: number } {
    if (!(row >= 0 && row < this.numRows)) throw new RangeError(`row ${row} of ${this.numRows}`)
    let low = 0
    let high = this.#regions.length - 1
    while (low < high) {
      const middle = (low + high + 1) >> 1
      if (this.#starts[middle]! <= row) low = middle
      else high = middle - 1
    }
    return { region: this.#regions[low]!, index: row - this.#starts[low]! }
  }

  #read(at: number, length: number): Int32Array {
    const values = new Int32Array(length)
    const bytes = new Uint8Array(values.buffer)
    if (readSync(this.#file, bytes, 0, bytes.length, at) !== bytes.length) {
      throw new DataError(this.path, 'ends too early; delete it and it will be made again')
    }
    return values
  }

  /** A document: inputIds and unshifted labels. */
  read(row: number): EncodedRow {
    const { region, index } = this.#locate(row)
    const start = region.offsets[index]!
    const length = region.offsets[index + 1]! - start
    return {
      inputIds: this.#read(region.inputIdsAt + start * 4, length),
      labels: this.#read(region.labelsAt + start * 4, length),
    }
  }

  get numGroups(): number {
    return this.numRows / this.groupSize
  }

  /** The number that a group carries; NaN where rows carry none. */
  valueOf(group: number): number {
    const { region, index } = this.#locate(group * this.groupSize)
    return region.values?.[index] ?? Number.NaN
  }

  /** The number of the row of the source that a document came from. */
  sourceRow(row: number): number {
    const { region, index } = this.#locate(row)
    return region.rows[index]!
  }

  /** Where the row of a document was: `train.jsonl:17`. */
  placeOf(row: number): string {
    const { region, index } = this.#locate(row)
    const start = region.placeOffsets[index]!
    const bytes = Buffer.alloc(region.placeOffsets[index + 1]! - start)
    readSync(this.#file, bytes, 0, bytes.length, region.placesAt + start)
    return bytes.toString('utf8')
  }

  close(): void {
    closeSync(this.#file)
  }
}

/** Opens a token file that `prepareTokens` wrote. */
export async function openTokenStore(path: string): Promise<TokenStore> {
  const { readTokenFileIndex } = await import('./arrow.js')
  try {
    const { regions, metadata } = await readTokenFileIndex(path)
    return new TokenStore(path, regions, metadata)
  } catch (error) {
    if (error instanceof DataError) throw error
    throw new DataError(path, `${messageOf(error)}; delete it and it will be made again`, { cause: error })
  }
}
