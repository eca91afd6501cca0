// Parquet through hyparquet: one slice of a row group in memory at a time. What the file says about itself is checked against the
// file before anything is allocated for it.
import { closeSync, openSync, readSync, statSync } from 'node:fs'
import { brotliDecompressSync, gunzipSync } from 'node:zlib'
import type { FileMetaData, SchemaTree } from 'hyparquet'
import { DataError, messageOf } from '../errors.js'
import { defineFormat, type PlacedRow, plainValue, remedyFor } from './format.js'
import { checkColumnChunk, maxChunkValues } from './parquet-check.js'

const maxPageBytes = 256 << 20
const sliceBytes = 64 << 20
const sliceRows = 1 << 16
/** A copy of 64 bytes takes 3 in Snappy, the densest that the format allows. */
const maxSnappyRatio = 24

function bounded(length: number): number {
  if (!(length >= 0 && length <= maxPageBytes)) throw new Error(`a page claims ${length} bytes uncompressed`)
  return length
}

type Library = typeof import('hyparquet')
type Decompress = (input: Uint8Array, length: number) => Uint8Array

function makeCompressors({ snappyUncompress }: Library): Record<string, Decompress> {
  return {
    UNCOMPRESSED: (input) => input,
    SNAPPY(input, length) {
      if (length > 64 + input.length * maxSnappyRatio)
        throw new Error(`a page claims ${length} bytes from ${input.length}`)
      const output = new Uint8Array(bounded(length))
      snappyUncompress(input, output)
      return output
    },
    GZIP: (input, length) => gunzipSync(input, { maxOutputLength: Math.max(1, bounded(length)) }),
    BROTLI: (input, length) => brotliDecompressSync(input, { maxOutputLength: Math.max(1, bounded(length)) }),
  }
}

/** Checks what a row group says of itself, and its pages. */
function checkRowGroup(
  group: FileMetaData['row_groups'][number],
  schema: SchemaTree,
  compressors: Record<string, Decompress>,
  slice: (start: number, end: number) => Uint8Array,
): void {
  const rows = Number(group.num_rows)
  if (!(Number.isSafeInteger(rows) && rows >= 0)) throw new Error(`claims ${group.num_rows} rows`)
  const paths = new Set<string>()
  for (const { meta_data: meta } of group.columns) {
    if (!meta) throw new Error('a column says nothing of itself')
    const name = meta.path_in_schema.join('.')
    if (paths.has(name)) throw new Error(`column "${name}" is there twice`)
    paths.add(name)
    let node: SchemaTree | undefined = schema
    let maxDefinitionLevel = 0
    let maxRepetitionLevel = 0
    for (const part of meta.path_in_schema) {
      node = node.children.find((child) => child.element.name === part)
      if (!node) throw new Error(`column "${name}" is not in the schema`)
      if (node.element.repetition_type !== 'REQUIRED') maxDefinitionLevel++
      if (node.element.repetition_type === 'REPEATED') maxRepetitionLevel++
    }
    const numValues = Number(meta.num_values)
    if (!(numValues >= 0 && numValues <= maxChunkValues)) {
      throw new Error(
        `column "${name}" has ${meta.num_values} values and ${maxChunkValues} are read at most; write smaller row groups`,
      )
    }
    if (rows > numValues || (maxRepetitionLevel === 0 && rows !== numValues)) {
      throw new Error(`column "${name}" has ${numValues} values and the row group ${rows} rows`)
    }
    const decompress = compressors[meta.codec]
    if (!decompress) {
      throw new Error(
        `column "${name}" is compressed with ${meta.codec}; write the file with snappy, gzip, brotli or none`,
      )
    }
    const start = Number(meta.dictionary_page_offset || meta.data_page_offset)
    checkColumnChunk(slice(start, start + Number(meta.total_compressed_size)), {
      numValues,
      maxDefinitionLevel,
      maxRepetitionLevel,
      isBoolean: meta.type === 'BOOLEAN',
      decompress,
    })
  }
  if (paths.size === 0 && rows > 0) throw new Error('has rows but no columns')
}

async function* read(path: string): AsyncGenerator<PlacedRow> {
  const library = await import('hyparquet')
  const { size } = statSync(path)
  if (size < 12) throw new DataError(path, `is too short for a Parquet file (${size} bytes)`)
  const descriptor = openSync(path, 'r')
  const slice = (start: number, end: number): Uint8Array<ArrayBuffer> => {
    if (!(start >= 0 && end >= start && end <= size)) throw new Error(`bytes ${start} to ${end} lie outside the file`)
    const bytes = new Uint8Array(end - start)
    readSync(descriptor, bytes, 0, bytes.length, start)
    return bytes
  }
  // Async, so that a refusal is a rejection that the library waits for, not an exception that leaves other promises behind.
  const file = { byteLength: size, slice: async (start: number, end = size) => slice(start, end).buffer }
  let place = path
  const compressors = makeCompressors(library)
  try {
    const metadata = await library.parquetMetadataAsync(file)
    const schema = library.parquetSchema(metadata)
    let start = 0
    for (const [index, group] of metadata.row_groups.entries()) {
      place = `${path} row group ${index}`
      checkRowGroup(group, schema, compressors, slice)
      const rows = Number(group.num_rows)
      const slices = Math.max(1, Math.ceil(Number(group.total_byte_size) / sliceBytes) || 1)
      const step = Math.min(sliceRows, Math.max(1, Math.ceil(rows / Math.min(slices, 1024))))
      for (let first = 0; first < rows; first += step) {
        const end = Math.min(rows, first + step)
        const options = { file, metadata, compressors, rowStart: start + first, rowEnd: start + end }
        const objects = await library.parquetReadObjects(options)
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
    throw new DataError(place, `cannot be read as Parquet: ${messageOf(error)}${remedyFor(error)}`, {
      cause: error,
    })
  } finally {
    closeSync(descriptor)
  }
}

export const parquet = defineFormat({ name: 'parquet', extensions: ['.parquet'], read })
