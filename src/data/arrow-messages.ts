// The messages of an Arrow IPC file or stream (arrow.apache.org/docs/format/Columnar.html), checked before apache-arrow sees them:
// the library trusts vector lengths, nesting and buffer positions, and a damaged file would keep it busy until memory runs out.
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'

const magic = 'ARROW1'
const continuation = 0xffffffff
const maxRows = 1 << 26
const maxTables = 100_000
const maxDepth = 64
const blockBytes = 24 // offset, length of the metadata, padding, length of the body

// Table slots and union members of format/Schema.fbs and format/Message.fbs.
const header = { schema: 1, dictionaryBatch: 2, recordBatch: 3 }
const typeWithVector = 14 // Union: typeIds
const typeWithString = 10 // Timestamp: timezone

/** Reads of a flatbuffer that never leave it. */
class FlatBuffer {
  readonly #view: DataView
  #tables = 0

  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  /** Fails where [at, at + size) is outside. */
  check(at: number, size: number): number {
    if (!(at >= 0 && size >= 0 && at + size <= this.#view.byteLength))
      throw new Error('a part of the metadata lies outside it')
    return at
  }

  byte(at: number): number {
    return this.#view.getUint8(this.check(at, 1))
  }

  long(at: number): number {
    const value = Number(this.#view.getBigInt64(this.check(at, 8), true))
    if (!Number.isSafeInteger(value) || value < 0) throw new Error(`a count or length of the metadata is ${value}`)
    return value
  }

  /** Where the offset at `at` points to. */
  target(at: number): number {
    const offset = this.#view.getUint32(this.check(at, 4), true)
    return this.check(at + offset, 4)
  }

  /** Positions of a table's fields by slot, 0 where absent. */
  table(at: number): (slot: number, size?: number) => number {
    if (++this.#tables > maxTables) throw new Error('the metadata holds too many parts')
    const vtable = this.check(at - this.#view.getInt32(this.check(at, 4), true), 4)
    const vtableSize = this.#view.getUint16(vtable, true)
    const tableSize = this.#view.getUint16(vtable + 2, true)
    this.check(vtable, vtableSize)
    this.check(at, tableSize)
    return (slot, size = 4) => {
      const entry = 4 + 2 * slot
      if (entry + 2 > vtableSize) return 0
      const offset = this.#view.getUint16(vtable + entry, true)
      return offset === 0 ? 0 : this.check(at + offset, size)
    }
  }

  /** First element and length of a vector whose elements take `size` bytes each; of a string with size 1. */
  vector(field: number, size: number): { at: number; length: number } {
    if (field === 0) return { at: 0, length: 0 }
    const at = this.target(field)
    const length = this.#view.getUint32(at, true)
    return { at: this.check(at + 4, length * size), length }
  }

  tables(field: number): number[] {
    const { at, length } = this.vector(field, 4)
    return Array.from({ length }, (_, i) => this.target(at + 4 * i))
  }
}

function checkPairs(buffer: FlatBuffer, field: number): void {
  for (const pair of buffer.tables(field)) {
    const slot = buffer.table(pair)
    buffer.vector(slot(0), 1)
    buffer.vector(slot(1), 1)
  }
}

function checkField(buffer: FlatBuffer, at: number, depth: number): void {
  if (depth > maxDepth) throw new Error('columns are nested too deeply')
  const slot = buffer.table(at)
  buffer.vector(slot(0), 1) // name
  const type = slot(2, 1) === 0 ? 0 : buffer.byte(slot(2, 1))
  if (slot(3) !== 0) {
    const typeSlot = buffer.table(buffer.target(slot(3)))
    if (type === typeWithVector) buffer.vector(typeSlot(1), 4)
    if (type === typeWithString) buffer.vector(typeSlot(1), 1)
  }
  if (slot(4) !== 0) {
    const encoding = buffer.table(buffer.target(slot(4)))
    if (encoding(1) !== 0) buffer.table(buffer.target(encoding(1)))
  }
  for (const child of buffer.tables(slot(5))) checkField(buffer, child, depth + 1)
  checkPairs(buffer, slot(6))
}

function checkBatch(buffer: FlatBuffer, at: number, bodyLength: number): void {
  const slot = buffer.table(at)
  const rows = slot(0, 8) === 0 ? 0 : buffer.long(slot(0, 8))
  if (rows > maxRows) throw new Error(`claims ${rows} rows; write smaller record batches`)
  const nodes = buffer.vector(slot(1), 16)
  for (let i = 0; i < nodes.length; i++) {
    const length = buffer.long(nodes.at + 16 * i)
    const nullCount = buffer.long(nodes.at + 16 * i + 8)
    // Every value takes at least a bit, but for columns of nothing but nulls, which are as long as the batch.
    if (length > Math.max(rows, bodyLength * 8) || nullCount > length)
      throw new Error(`column part ${i} claims ${length} values`)
  }
  const buffers = buffer.vector(slot(2), 16)
  for (let i = 0; i < buffers.length; i++) {
    const offset = buffer.long(buffers.at + 16 * i)
    const length = buffer.long(buffers.at + 16 * i + 8)
    if (offset + length > bodyLength) throw new Error(`buffer ${i} lies outside the record batch`)
  }
  if (slot(3) !== 0) throw new Error('the buffers are compressed; write the file with compression "uncompressed"')
  buffer.vector(slot(4), 8)
}

function checkSchema(buffer: FlatBuffer, at: number): void {
  const schema = buffer.table(at)
  for (const field of buffer.tables(schema(1))) checkField(buffer, field, 0)
  checkPairs(buffer, schema(2))
  buffer.vector(schema(3), 8)
}

/** Checks the flatbuffer of a message → the length of its body. */
function checkMessage(bytes: Uint8Array, isFirst: boolean): number {
  const buffer = new FlatBuffer(bytes)
  const slot = buffer.table(buffer.target(0))
  const type = slot(1, 1) === 0 ? 0 : buffer.byte(slot(1, 1))
  if (isFirst !== (type === header.schema))
    throw new Error(isFirst ? 'does not begin with a schema' : 'has a second schema')
  if (slot(2) === 0) throw new Error('a message has no content')
  const content = buffer.target(slot(2))
  const bodyLength = slot(3, 8) === 0 ? 0 : buffer.long(slot(3, 8))
  checkPairs(buffer, slot(4))
  if (type === header.schema) checkSchema(buffer, content)
  else if (type === header.recordBatch) checkBatch(buffer, content, bodyLength)
  else if (type === header.dictionaryBatch) {
    const dictionary = buffer.table(content)
    if (dictionary(1) === 0) throw new Error('a dictionary has no data')
    checkBatch(buffer, buffer.target(dictionary(1)), bodyLength)
  } else throw new Error(`a message has the unknown type ${type}`)
  return bodyLength
}

interface OpenFile {
  size: number
  read(at: number, length: number): Buffer
}

/** Opens a file for reads that never go past its end. */
function openChecked(path: string): OpenFile & { close(): void } {
  const file = openSync(path, 'r')
  const { size } = fstatSync(file)
  return {
    size,
    read(at, length) {
      if (!(at >= 0 && length >= 0 && at + length <= size)) throw new Error(`ends inside a message, at byte ${size}`)
      const bytes = Buffer.alloc(length)
      if (readSync(file, bytes, 0, length, at) !== length) throw new Error(`ends inside a message, at byte ${size}`)
      return bytes
    },
    close: () => closeSync(file),
  }
}

/** The head of the message at `at` → where its flatbuffer is; undefined at the end of the stream. */
function readPrefix({ read }: OpenFile, at: number): { metadataAt: number; metadataLength: number } | undefined {
  const prefix = read(at, 8)
  const isModern = prefix.readUInt32LE(0) === continuation // since Arrow 0.15
  const metadataLength = prefix.readInt32LE(isModern ? 4 : 0)
  if (metadataLength === 0) return undefined
  if (metadataLength < 0) throw new Error(`claims ${metadataLength} bytes of metadata at byte ${at}`)
  return { metadataAt: at + (isModern ? 8 : 4), metadataLength }
}

/** True for the file form, which has a footer; false for the stream form. */
export function isArrowFile(path: string): boolean {
  const file = openChecked(path)
  try {
    if (file.size < 12) throw new Error(`is too short (${file.size} bytes)`)
    return file.read(0, 6).toString('latin1') === magic
  } finally {
    file.close()
  }
}

/** Checks the footer of a file and all messages that it points to → the bytes of their bodies. */
export function checkArrowFile(path: string): number {
  const file = openChecked(path)
  try {
    const { size } = file
    const tail = file.read(size - 10, 10)
    const footerLength = tail.readInt32LE(0)
    if (tail.toString('latin1', 4) !== magic) throw new Error('does not end with ARROW1; it is cut off')
    if (!(footerLength > 0 && footerLength <= size - 18)) throw new Error(`claims a footer of ${footerLength} bytes`)
    const buffer = new FlatBuffer(file.read(size - 10 - footerLength, footerLength))
    const footer = buffer.table(buffer.target(0))
    if (footer(1) === 0) throw new Error('the footer has no schema')
    checkSchema(buffer, buffer.target(footer(1)))
    let total = 0
    for (const slot of [2, 3]) {
      const { at, length } = buffer.vector(footer(slot), blockBytes)
      for (let i = 0; i < length; i++) {
        const offset = buffer.long(at + blockBytes * i)
        const prefix = readPrefix(file, offset)
        if (!prefix) throw new Error(`there is no message at byte ${offset}`)
        const bodyLength = checkMessage(file.read(prefix.metadataAt, prefix.metadataLength), false)
        if (prefix.metadataAt + prefix.metadataLength + bodyLength > size)
          throw new Error(`claims a body of ${bodyLength} bytes at byte ${offset}`)
        total += bodyLength
      }
    }
    return total
  } finally {
    file.close()
  }
}

/** The messages of a stream, each whole and checked. `onBody` hears the length of each body. */
export function* readArrowStream(path: string, onBody: (bytes: number) => void): Generator<Uint8Array> {
  const file = openChecked(path)
  try {
    let at = 0
    for (let isFirst = true; at + 8 <= file.size; isFirst = false) {
      const prefix = readPrefix(file, at)
      if (!prefix) break
      const { metadataAt, metadataLength } = prefix
      const bodyLength = checkMessage(file.read(metadataAt, metadataLength), isFirst)
      const next = metadataAt + metadataLength + bodyLength
      if (next > file.size) throw new Error(`claims a body of ${bodyLength} bytes at byte ${at}`)
      onBody(bodyLength)
      yield file.read(at, next - at)
      at = next
    }
  } finally {
    file.close()
  }
}
