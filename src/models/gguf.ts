// Reader of GGUF files, versions 2 and 3 (github.com/ggml-org/ggml/blob/master/docs/gguf.md): metadata of every type,
// tensor table, tensor bytes on demand. Serves `espalier import` (stop 5 of a run).
import { BinaryFile, FileCursor } from './binary-file.js'
import { FormatError } from './format-error.js'
import { type GgmlType, ggmlTypes } from './ggml-types.js'

export type GgufScalar = number | bigint | boolean | string
export type GgufValue = GgufScalar | GgufValue[]

/** One metadata entry: `type` and `itemType` by their names in the specification. */
export interface GgufMetadata {
  type: string
  value: GgufValue
  itemType?: string
}

export interface GgufTensor {
  name: string
  type: GgmlType
  /** Sizes in the order of the file, fastest first. */
  dims: number[]
  /** Sizes row-major, as everywhere else here. */
  shape: number[]
  /** Offset in the data section. */
  offset: number
  absoluteOffset: number
  byteLength: number
}

export interface GgufFile {
  path: string
  version: number
  alignment: number
  dataStart: number
  metadata: Map<string, GgufMetadata>
  tensors: Map<string, GgufTensor>
  /** Bytes `from` to `to` of a tensor (all of it by default). */
  read(tensor: GgufTensor, from?: number, to?: number): Uint8Array
  close(): void
}

const MAGIC = 0x46554747
/** ggml keeps names in 64 bytes and four dimensions; both limits are generous. */
const MAX_TENSOR_NAME_BYTES = 1024
const MAX_KEY_BYTES = 65535
const MAX_DIMS = 4
const MAX_ARRAY_DEPTH = 4

interface ValueType {
  name: string
  /** Fewest bytes that one value takes, to refuse counts that cannot fit. */
  minBytes: number
  read(cursor: FileCursor, place: string, depth: number, file: string): GgufValue
}

const integer = (value: bigint): number | bigint =>
  value >= BigInt(Number.MIN_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value

function readString(cursor: FileCursor, place: string, file: string, maxBytes = Number.MAX_SAFE_INTEGER): string {
  const at = cursor.position
  const length = cursor.count(`length of ${place}`)
  if (length > cursor.remaining || length > maxBytes) {
    throw new FormatError(
      file,
      `${place} at byte ${at}`,
      `a string of ${length} bytes, ${Math.min(cursor.remaining, maxBytes)} at most here`,
    )
  }
  return cursor.utf8(length, place)
}

/** Value types by their number in the file. */
const valueTypes: ValueType[] = [
  { name: 'UINT8', minBytes: 1, read: (c, p) => c.u8(p) },
  { name: 'INT8', minBytes: 1, read: (c, p) => c.i8(p) },
  { name: 'UINT16', minBytes: 2, read: (c, p) => c.u16(p) },
  { name: 'INT16', minBytes: 2, read: (c, p) => c.i16(p) },
  { name: 'UINT32', minBytes: 4, read: (c, p) => c.u32(p) },
  { name: 'INT32', minBytes: 4, read: (c, p) => c.i32(p) },
  { name: 'FLOAT32', minBytes: 4, read: (c, p) => c.f32(p) },
  { name: 'BOOL', minBytes: 1, read: (c, p, _, file) => readBool(c, p, file) },
  { name: 'STRING', minBytes: 8, read: (c, p, _, file) => readString(c, p, file) },
  { name: 'ARRAY', minBytes: 12, read: (c, p, depth, file) => readArray(c, p, depth, file).items },
  { name: 'UINT64', minBytes: 8, read: (c, p) => integer(c.u64(p)) },
  { name: 'INT64', minBytes: 8, read: (c, p) => integer(c.i64(p)) },
  { name: 'FLOAT64', minBytes: 8, read: (c, p) => c.f64(p) },
]

function readBool(cursor: FileCursor, place: string, file: string): boolean {
  const value = cursor.u8(place)
  if (value > 1) throw new FormatError(file, `${place} at byte ${cursor.position - 1}`, `${value} is no boolean`)
  return value === 1
}

function readValueType(cursor: FileCursor, place: string, file: string): ValueType {
  const number = cursor.u32(`type of ${place}`)
  const type = valueTypes[number]
  if (!type) throw new FormatError(file, `${place} at byte ${cursor.position - 4}`, `unknown value type ${number}`)
  return type
}

function readArray(cursor: FileCursor, place: string, depth: number, file: string) {
  if (depth >= MAX_ARRAY_DEPTH) throw new FormatError(file, place, `arrays nested more than ${MAX_ARRAY_DEPTH} deep`)
  const type = readValueType(cursor, place, file)
  const count = cursor.count(`length of ${place}`)
  if (count * type.minBytes > cursor.remaining) {
    throw new FormatError(
      file,
      `${place} at byte ${cursor.position - 8}`,
      `${count} values of type ${type.name} cannot fit in the ${cursor.remaining} bytes left`,
    )
  }
  const items: GgufValue[] = []
  for (let i = 0; i < count; i++) items.push(type.read(cursor, place, depth + 1, file))
  return { items, itemType: type.name }
}

function readMetadata(cursor: FileCursor, count: number, file: string): Map<string, GgufMetadata> {
  const metadata = new Map<string, GgufMetadata>()
  for (let i = 0; i < count; i++) {
    const key = readString(cursor, `key of metadata entry ${i}`, file, MAX_KEY_BYTES)
    const place = `metadata ${JSON.stringify(key)}`
    if (metadata.has(key)) throw new FormatError(file, place, 'occurs twice')
    const type = readValueType(cursor, place, file)
    if (type.name === 'ARRAY') {
      const { items, itemType } = readArray(cursor, place, 0, file)
      metadata.set(key, { type: type.name, value: items, itemType })
    } else metadata.set(key, { type: type.name, value: type.read(cursor, place, 0, file) })
  }
  return metadata
}

interface TensorEntry {
  name: string
  dims: number[]
  typeNumber: number
  offset: number
}

function readTensorTable(cursor: FileCursor, count: number, file: string): TensorEntry[] {
  const entries: TensorEntry[] = []
  for (let i = 0; i < count; i++) {
    const name = readString(cursor, `name of tensor ${i}`, file, MAX_TENSOR_NAME_BYTES)
    const place = `tensor ${JSON.stringify(name)}`
    const rank = cursor.u32(`dimensions of ${place}`)
    if (rank > MAX_DIMS) throw new FormatError(file, place, `${rank} dimensions, at most ${MAX_DIMS} are allowed`)
    const dims: number[] = []
    for (let d = 0; d < rank; d++) dims.push(cursor.count(`dimension ${d} of ${place}`))
    const typeNumber = cursor.u32(`type of ${place}`)
    entries.push({ name, dims, typeNumber, offset: cursor.count(`offset of ${place}`) })
  }
  return entries
}

function placeTensor(entry: TensorEntry, file: BinaryFile, dataStart: number, alignment: number): GgufTensor {
  const { name, dims, offset } = entry
  const place = `tensor ${JSON.stringify(name)}`
  const type = ggmlTypes.get(entry.typeNumber)
  if (!type) throw new FormatError(file.path, place, `unknown tensor type ${entry.typeNumber}`)
  const columns = dims[0] ?? 1
  if (columns % type.blockValues !== 0) {
    throw new FormatError(
      file.path,
      place,
      `${columns} columns are no multiple of ${type.blockValues}, the block of ${type.name}`,
    )
  }
  const count = dims.reduce((product, size) => product * size, 1)
  const byteLength = (count / type.blockValues) * type.blockBytes
  const absoluteOffset = dataStart + offset
  if (!Number.isSafeInteger(count) || !(absoluteOffset + byteLength <= file.byteLength)) {
    throw new FormatError(
      file.path,
      place,
      `${type.name} [${dims}] at byte ${absoluteOffset} does not fit in a file of ${file.byteLength} bytes`,
    )
  }
  if (offset % alignment !== 0) {
    throw new FormatError(file.path, place, `offset ${offset} is no multiple of the alignment ${alignment}`)
  }
  return { name, type, dims, shape: [...dims].reverse(), offset, absoluteOffset, byteLength }
}

function refuseOverlaps(tensors: Iterable<GgufTensor>, file: string): void {
  const sorted = [...tensors].filter((t) => t.byteLength > 0).sort((a, b) => a.offset - b.offset)
  for (let i = 1; i < sorted.length; i++) {
    const before = sorted[i - 1]!
    const tensor = sorted[i]!
    if (before.offset + before.byteLength > tensor.offset) {
      throw new FormatError(file, `tensor ${JSON.stringify(tensor.name)}`, `overlaps ${JSON.stringify(before.name)}`)
    }
  }
}

/** Opens a GGUF file: reads metadata and the tensor table, checks that every tensor lies in the file. Throws FormatError. */
export function openGguf(path: string): GgufFile {
  const file = new BinaryFile(path)
  try {
    return readGguf(file)
  } catch (error) {
    file.close()
    throw error
  }
}

function readGguf(file: BinaryFile): GgufFile {
  const { path } = file
  const cursor = new FileCursor(file)
  if (cursor.u32('magic') !== MAGIC) throw new FormatError(path, 'byte 0', 'not a GGUF file')
  const version = cursor.u32('version')
  if (version !== 2 && version !== 3) {
    throw new FormatError(path, 'byte 4', `GGUF version ${version} is not supported, only 2 and 3 (little-endian)`)
  }
  const tensorCount = cursor.count('number of tensors')
  const metadataCount = cursor.count('number of metadata entries')
  // The shortest entries: key length, type and value; name length, rank, type and offset.
  if (metadataCount * 13 + tensorCount * 24 > cursor.remaining) {
    throw new FormatError(
      path,
      'byte 8',
      `${tensorCount} tensors and ${metadataCount} metadata entries cannot fit in the file`,
    )
  }
  const metadata = readMetadata(cursor, metadataCount, path)
  const entries = readTensorTable(cursor, tensorCount, path)
  const alignment = metadata.get('general.alignment')?.value ?? 32
  if (typeof alignment !== 'number' || !Number.isInteger(alignment) || alignment <= 0 || alignment % 8 !== 0) {
    throw new FormatError(path, 'metadata "general.alignment"', `${alignment} is no positive multiple of 8`)
  }
  const dataStart = Math.ceil(cursor.position / alignment) * alignment
  const tensors = new Map<string, GgufTensor>()
  for (const entry of entries) {
    if (tensors.has(entry.name)) throw new FormatError(path, `tensor ${JSON.stringify(entry.name)}`, 'occurs twice')
    tensors.set(entry.name, placeTensor(entry, file, dataStart, alignment))
  }
  refuseOverlaps(tensors.values(), path)
  return {
    path,
    version,
    alignment,
    dataStart,
    metadata,
    tensors,
    read: (tensor, from = 0, to = tensor.byteLength) =>
      file.read(tensor.absoluteOffset + from, to - from, `tensor ${JSON.stringify(tensor.name)}`),
    close: () => file.close(),
  }
}
