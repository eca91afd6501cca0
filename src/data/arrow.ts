// The door to apache-arrow: record batches of files that users bring, and the token files that we write and read back.
// A file of lists holds one column of lists of float32. A token file holds inputIds and labels as lists of int32, the length and the source row of each document, and the place of its
// row; reading one gives where each document's numbers lie in the file, so that they are read by position.
import { closeSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs'
import { open } from 'node:fs/promises'
import * as arrow from 'apache-arrow'
import { checkArrowFile, isArrowFile, readArrowStream } from './arrow-messages.js'

/** Values and characters that a batch may hold; what claims more than its bytes can hold is damaged. */
class Budget {
  left = 0

  spend(amount: number): void {
    this.left -= amount
    if (this.left < 0) throw new Error('claims more values than its bytes can hold')
  }
}

/** Rows of an Arrow file or stream, one array of row objects per record batch. */
export async function* readRecordBatches(path: string): AsyncGenerator<unknown[]> {
  const budget = new Budget()
  const allow = (bytes: number): void => {
    // A value takes a bit or more, so ten times the bits leave room for nulls and dictionaries.
    budget.left += 80 * bytes + 10_000
  }
  if (isArrowFile(path)) {
    allow(checkArrowFile(path))
    const handle = await open(path, 'r')
    try {
      yield* readBatches(await arrow.RecordBatchReader.from(handle as unknown as arrow.FileHandle), budget)
    } finally {
      await handle.close()
    }
  } else yield* readBatches(await arrow.RecordBatchReader.from(toAsync(readArrowStream(path, allow))), budget)
}

async function* readBatches(reader: arrow.RecordBatchReader, budget: Budget): AsyncGenerator<unknown[]> {
  await reader.open({ autoDestroy: false })
  if (!reader.schema) throw new Error('there is no schema')
  for await (const batch of reader) yield rowsOf(batch, budget)
}

async function* toAsync<T>(items: Iterable<T>): AsyncGenerator<T> {
  yield* items
}

/** The rows of a batch, column by column: the accessors of the library cost more by row. */
function rowsOf(batch: arrow.RecordBatch, budget: Budget): unknown[] {
  budget.spend(batch.numRows)
  const rows: Record<string, unknown>[] = Array.from({ length: batch.numRows }, () => ({}))
  for (const field of batch.schema.fields) {
    const column = batch.getChild(field.name)
    if (!column || column.length !== batch.numRows)
      throw new Error(`column "${field.name}" has another length than the batch`)
    for (let i = 0; i < rows.length; i++) {
      const value: unknown = column.get(i)
      if (value !== null && value !== undefined) rows[i]![field.name] = toPlain(value, budget)
    }
  }
  return rows
}

/** Vectors and rows of the library as arrays and objects. */
function toPlain(value: unknown, budget: Budget): unknown {
  if (typeof value === 'string') budget.spend(value.length)
  if (value instanceof arrow.Vector) {
    budget.spend(value.length)
    return Array.from(value as Iterable<unknown>, (item) => toPlain(item, budget))
  }
  if (value instanceof arrow.StructRow || value instanceof arrow.MapRow) {
    const object: Record<string, unknown> = {}
    for (const [key, item] of value as Iterable<[string, unknown]>) {
      budget.spend(1)
      object[key] = toPlain(item, budget)
    }
    return object
  }
  return value
}

const listField = new arrow.Field('values', new arrow.List(new arrow.Field('item', new arrow.Float32(), false)), false)

/** Writes lists of numbers as one record batch, and waits until they are on disk. @throws where the file is there */
export function writeFloatLists(path: string, lists: readonly Float32Array[]): void {
  const offsets = new Int32Array(lists.length + 1)
  for (const [i, { length }] of lists.entries()) offsets[i + 1] = offsets[i]! + length
  const flat = new Float32Array(offsets.at(-1)!)
  for (const [i, list] of lists.entries()) flat.set(list, offsets[i]!)
  const child = arrow.makeData({ type: new arrow.Float32(), data: flat })
  const shape = { length: lists.length, nullCount: 0 }
  const column = arrow.makeData({ type: listField.type as arrow.List, ...shape, valueOffsets: offsets, child })
  const schema = new arrow.Schema([listField])
  const struct = arrow.makeData({ type: new arrow.Struct(schema.fields), ...shape, children: [column] })
  const file = openSync(path, 'wx')
  try {
    const writer = new arrow.RecordBatchFileWriter()
    writer.reset(new FileSink(file), schema)
    writer.write(new arrow.RecordBatch(schema, struct))
    writer.finish()
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
}

/** What writeFloatLists wrote. @throws where the file is something else or damaged */
export async function readFloatLists(path: string): Promise<Float32Array[]> {
  const lists: Float32Array[] = []
  for await (const rows of readRecordBatches(path)) {
    for (const row of rows as { values?: unknown }[]) {
      const { values } = row
      if (!Array.isArray(values) || !values.every((value) => typeof value === 'number')) {
        throw new Error(`row ${lists.length} holds no list of numbers`)
      }
      lists.push(Float32Array.from(values))
    }
  }
  return lists
}

const int32 = new arrow.Int32()
const listOfInt32 = new arrow.List(new arrow.Field('item', int32, false))
const tokenFields = [
  new arrow.Field('inputIds', listOfInt32, false),
  new arrow.Field('labels', listOfInt32, false),
  new arrow.Field('length', int32, false),
  new arrow.Field('row', int32, false),
  new arrow.Field('place', new arrow.Utf8(), false),
]

/** Of files whose rows carry a number: that of the row which each document belongs to. */
const valueField = new arrow.Field('value', new arrow.Float64(), false)

/** Documents of one record batch, laid end to end; document i is [offsets[i], offsets[i + 1]) of inputIds and labels. */
export interface TokenBatch {
  numRows: number
  offsets: Int32Array
  inputIds: Int32Array
  labels: Int32Array
  rows: Int32Array
  /** UTF-8 of the places end to end, and where each begins (numRows + 1 offsets). */
  places: Uint8Array
  placeOffsets: Int32Array
  /** One number per document, in files that were opened for them. */
  values?: Float64Array
}

/** A sink of the library's writer that writes to a file at once and keeps nothing. */
class FileSink extends arrow.AsyncByteQueue {
  readonly #file: number

  constructor(file: number) {
    super()
    this.#file = file
  }

  override write(chunk: Parameters<arrow.AsyncByteQueue['write']>[0]): void {
    let rest = chunk as Uint8Array
    while (rest.byteLength > 0) rest = rest.subarray(writeSync(this.#file, rest))
  }
}

/** Writes a token file batch by batch; `close` makes it durable. */
export class TokenFileWriter {
  readonly #file: number
  readonly #schema: arrow.Schema
  readonly #writer: arrow.RecordBatchFileWriter
  #isOpen = true

  /** @param hasValues every batch has `values` */
  constructor(path: string, metadata: Record<string, string>, hasValues = false) {
    this.#file = openSync(path, 'wx')
    const fields = hasValues ? [...tokenFields, valueField] : tokenFields
    this.#schema = new arrow.Schema(fields, new Map(Object.entries(metadata)))
    this.#writer = new arrow.RecordBatchFileWriter()
    this.#writer.reset(new FileSink(this.#file), this.#schema)
  }

  write({ numRows, offsets, inputIds, labels, rows, places, placeOffsets, values }: TokenBatch): void {
    const listData = (values: Int32Array): arrow.Data => {
      const child = arrow.makeData({ type: int32, data: values })
      return arrow.makeData({ type: listOfInt32, length: numRows, nullCount: 0, valueOffsets: offsets, child })
    }
    const lengths = new Int32Array(numRows)
    for (let i = 0; i < numRows; i++) lengths[i] = offsets[i + 1]! - offsets[i]!
    const children = [
      listData(inputIds),
      listData(labels),
      arrow.makeData({ type: int32, data: lengths }),
      arrow.makeData({ type: int32, data: rows }),
      arrow.makeData({
        type: new arrow.Utf8(),
        length: numRows,
        nullCount: 0,
        valueOffsets: placeOffsets,
        data: places,
      }),
      ...(values ? [arrow.makeData({ type: new arrow.Float64(), data: values })] : []),
    ]
    const struct = arrow.makeData({
      type: new arrow.Struct(this.#schema.fields),
      length: numRows,
      nullCount: 0,
      children,
    })
    this.#writer.write(new arrow.RecordBatch(this.#schema, struct))
  }

  close(): void {
    this.#writer.finish()
    fsyncSync(this.#file)
    this.abort()
  }

  /** Closes the file as it is. */
  abort(): void {
    if (this.#isOpen) closeSync(this.#file)
    this.#isOpen = false
  }
}

/** Where the numbers of one record batch lie in a token file, in bytes from its start. */
export interface TokenRegion {
  numRows: number
  offsets: Int32Array
  rows: Int32Array
  inputIdsAt: number
  labelsAt: number
  placesAt: number
  placeOffsets: Int32Array
  /** Of files whose rows carry a number. */
  values: Float64Array | undefined
}

export interface TokenFileIndex {
  metadata: Map<string, string>
  regions: TokenRegion[]
}

// Buffers of a batch in the order of the format: per column validity first; a list adds offsets and the item's validity and values.
const bufferOrder = {
  inputIdOffsets: 1,
  inputIds: 3,
  labels: 7,
  rows: 11,
  placeOffsets: 13,
  places: 14,
  count: 15,
  /** Behind the validity of its column, where there is one. */
  values: 16,
  countWithValues: 17,
}

function readInto<T extends Int32Array | Float64Array>(file: number, at: number, values: T): T {
  const bytes = new Uint8Array(values.buffer as ArrayBuffer)
  if (readSync(file, bytes, 0, bytes.length, at) !== bytes.length)
    throw new Error(`ends inside a record batch at byte ${at}`)
  return values
}

const readInt32 = (file: number, at: number, count: number) => readInto(file, at, new Int32Array(count))

/** Reads where each of `numRows` lists begins, and where the last one ends. @throws where one would end before it begins */
function readOffsets(file: number, at: number, numRows: number): Int32Array {
  const offsets = readInt32(file, at, numRows + 1)
  if (offsets[0] !== 0 || offsets.some((offset, i) => i > 0 && offset < offsets[i - 1]!))
    throw new Error(`has offsets that do not rise at byte ${at}`)
  return offsets
}

/**
 * The index of a token file; reads its footer, the heads of its batches and their small columns, not the tokens.
 * @throws where the file has another form, or a column would lie outside its record batch
 */
export async function readTokenFileIndex(path: string): Promise<TokenFileIndex> {
  checkArrowFile(path)
  const handle = await open(path, 'r')
  try {
    const reader = await arrow.RecordBatchReader.from(handle as unknown as arrow.FileHandle)
    await reader.open({ autoDestroy: false })
    const { footer, schema } = reader
    const names = (fields: readonly arrow.Field[]) => fields.map((field) => field.name).join()
    const hasValues = names(schema.fields) === names([...tokenFields, valueField])
    if (!footer || !(hasValues || names(schema.fields) === names(tokenFields))) throw new Error('is not a token file')
    const regions: TokenRegion[] = []
    for (const block of footer.recordBatches()) {
      const wrong = (problem: string) => new Error(`record batch ${regions.length} ${problem}`)
      const head = Buffer.alloc(block.metaDataLength)
      await handle.read(head, 0, head.length, block.offset)
      // Continuation marker and length come first; the length must be the footer's, which says where the body begins
      if (head.length < 8 || head.readInt32LE(4) + 8 !== head.length) throw wrong('is not where the footer says')
      const message = arrow.Message.decode(head.subarray(8))
      const { buffers, length: numRows } = message.header() as unknown as {
        buffers: { offset: number; length: number }[]
        length: number
      }
      if (buffers?.length !== (hasValues ? bufferOrder.countWithValues : bufferOrder.count))
        throw wrong('has another layout')
      /** Where a buffer begins that must hold so many bytes; that it lies inside the batch is checked above. */
      const at = (index: number, bytes: number): number => {
        const { offset, length } = buffers[index]!
        if (length < bytes) throw wrong(`has ${length} of ${bytes} bytes in buffer ${index}`)
        return block.offset + block.metaDataLength + offset
      }
      const offsetBytes = (numRows + 1) * 4
      const offsets = readOffsets(handle.fd, at(bufferOrder.inputIdOffsets, offsetBytes), numRows)
      const placeOffsets = readOffsets(handle.fd, at(bufferOrder.placeOffsets, offsetBytes), numRows)
      const tokenBytes = offsets[numRows]! * 4
      regions.push({
        numRows,
        offsets,
        rows: readInt32(handle.fd, at(bufferOrder.rows, numRows * 4), numRows),
        inputIdsAt: at(bufferOrder.inputIds, tokenBytes),
        labelsAt: at(bufferOrder.labels, tokenBytes),
        placesAt: at(bufferOrder.places, placeOffsets[numRows]!),
        placeOffsets,
        values: hasValues
          ? readInto(handle.fd, at(bufferOrder.values, numRows * 8), new Float64Array(numRows))
          : undefined,
      })
    }
    return { metadata: schema.metadata, regions }
  } finally {
    await handle.close()
  }
}
