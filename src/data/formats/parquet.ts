// Parquet through hyparquet: one slice of a row group in memory at a time. What the file says about itself is checked against the
// file before anything is allocated for it.
import { closeSync, openSync, readSync, statSync } from 'node:fs'
import { brotliDecompressSync, gunzipSync } from 'node:zlib'
import { DataError, messageOf } from '../errors.js'
import { defineFormat, type PlacedRow, plainValue } from './format.js'

const maxPageBytes = 256 << 20
const sliceBytes = 64 << 20
/** A copy of 64 bytes takes 3 in Snappy, the densest that the format allows. */
const maxSnappyRatio = 24

function bounded(place: string, length: number): number {
  if (!(length >= 0 && length <= maxPageBytes)) {
    throw new DataError(place, `a page claims ${length} bytes uncompressed; the file is damaged`)
  }
  return length
}

async function* read(path: string): AsyncGenerator<PlacedRow> {
  const { parquetMetadataAsync, parquetReadObjects, snappyUncompress } = await import('hyparquet')
  const { size } = statSync(path)
  if (size < 12) throw new DataError(path, `is too short for a Parquet file (${size} bytes)`)
  const descriptor = openSync(path, 'r')
  const file = {
    byteLength: size,
    slice(start: number, end: number = size): ArrayBuffer {
      if (!(start >= 0 && end >= start && end <= size)) throw new Error(`bytes ${start} to ${end} lie outside the file`)
      const bytes = new Uint8Array(end - start)
      readSync(descriptor, bytes, 0, bytes.length, start)
      return bytes.buffer
    },
  }
  let place = path
  const compressors = {
    SNAPPY(input: Uint8Array, length: number): Uint8Array {
      if (length > 64 + input.length * maxSnappyRatio)
        throw new Error(`a page claims ${length} bytes from ${input.length}`)
      const output = new Uint8Array(bounded(place, length))
      snappyUncompress(input, output)
      return output
    },
    GZIP: (input: Uint8Array, length: number) =>
      gunzipSync(input, { maxOutputLength: Math.max(1, bounded(place, length)) }),
    BROTLI: (input: Uint8Array, length: number) =>
      brotliDecompressSync(input, { maxOutputLength: Math.max(1, bounded(place, length)) }),
  }
  try {
    const metadata = await parquetMetadataAsync(file)
    let start = 0
    for (const [index, group] of metadata.row_groups.entries()) {
      place = `${path} row group ${index}`
      const rows = Number(group.num_rows)
      // Every value takes part in some page; a run-length page can hold many rows in few bytes, but not without limit.
      if (!Number.isSafeInteger(rows) || rows < 0 || rows > size * 1024)
        throw new Error(`claims ${group.num_rows} rows`)
      for (const column of group.columns) {
        const values = Number(column.meta_data?.num_values ?? 0)
        if (!(values >= 0 && values <= size * 1024)) throw new Error(`a column claims ${values} values`)
      }
      const slices = Math.max(1, Math.ceil(Number(group.total_byte_size) / sliceBytes))
      const step = Math.max(1, Math.ceil(rows / Math.min(slices, 1024)))
      for (let first = 0; first < rows; first += step) {
        const end = Math.min(rows, first + step)
        const objects = await parquetReadObjects({
          file,
          metadata,
          compressors,
          rowStart: start + first,
          rowEnd: start + end,
        })
        if (objects.length !== end - first)
          throw new Error(`holds ${objects.length} rows where ${end - first} were promised`)
        for (const [i, object] of objects.entries()) {
          yield { row: plainValue(object), place: `${path} row ${start + first + i}` }
        }
      }
      start += rows
    }
  } catch (error) {
    if (error instanceof DataError) throw error
    throw new DataError(place, `cannot be read as Parquet (${messageOf(error)}); write the file again`, {
      cause: error,
    })
  } finally {
    closeSync(descriptor)
  }
}

export const parquet = defineFormat({ name: 'parquet', extensions: ['.parquet'], read })
