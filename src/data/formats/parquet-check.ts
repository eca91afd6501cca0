// Walks the pages of a Parquet column chunk before hyparquet decodes it (parquet-format, README and Encodings.md): sizes must lie
// inside the chunk and runs of levels and dictionary indices inside their page, because the library writes out as many values as
// a damaged run claims.

/** More values than this in one column chunk do not fit the arrays of a JavaScript engine. */
export const maxChunkValues = 1 << 26

/** A struct of Thrift's compact protocol: numbers and nested structs by field; other values are skipped. */
type ThriftStruct = Map<number, number | ThriftStruct>

const maxDepth = 16
const maxDeltaBlock = 1 << 20 // writers use 128 to 2048

/** Reader of the compact protocol (thrift/doc/specs/thrift-compact-protocol.md), as far as page headers need it. */
class ThriftReader {
  at: number
  readonly #bytes: Uint8Array

  constructor(bytes: Uint8Array, at: number) {
    this.#bytes = bytes
    this.at = at
  }

  #byte(): number {
    const value = this.#bytes[this.at++]
    if (value === undefined) throw new Error('a page header is cut off')
    return value
  }

  varint(): number {
    let value = 0
    let scale = 1
    for (let i = 0; i < 10; i++) {
      const byte = this.#byte()
      value += (byte & 0x7f) * scale
      scale *= 128
      if (byte < 128) return value
    }
    throw new Error('a page header holds a number that is too long')
  }

  #zigzag(): number {
    const value = this.varint()
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2
  }

  #value(type: number, depth: number): number | ThriftStruct | undefined {
    if (type === 1 || type === 2) return 2 - type // true, false
    if (type === 3) return this.#byte()
    if (type >= 4 && type <= 6) return this.#zigzag()
    if (type === 7) this.at += 8
    else if (type === 8) {
      const length = this.varint()
      this.at += length
    } else if (type === 9 || type === 10) {
      const head = this.#byte()
      const count = head >> 4 === 15 ? this.varint() : head >> 4
      for (let i = 0; i < count; i++) {
        // Booleans of a list take a byte.
        if ((head & 15) <= 2) this.#byte()
        else this.#value(head & 15, depth)
      }
    } else if (type === 12) return this.struct(depth + 1)
    else throw new Error(`a page header holds a value of unknown type ${type}`)
    return undefined
  }

  struct(depth = 0): ThriftStruct {
    if (depth > maxDepth) throw new Error('a page header is nested too deeply')
    const fields: ThriftStruct = new Map()
    for (let id = 0; ; ) {
      const head = this.#byte()
      if ((head & 15) === 0) return fields
      id = head >> 4 === 0 ? this.#zigzag() : id + (head >> 4)
      const value = this.#value(head & 15, depth)
      if (value !== undefined) fields.set(id, value)
    }
  }
}

/** Checks a stretch of the run-length and bit-packing hybrid that stands for at most `count` values. */
function checkRuns(bytes: Uint8Array, start: number, end: number, width: number, count: number): void {
  if (width > 32) throw new Error(`values of ${width} bits are not possible`)
  let seen = 0
  const reader = new ThriftReader(bytes, start)
  while (seen < count && reader.at < end) {
    const head = reader.varint()
    const run = Math.floor(head / 2)
    if (head % 2 === 1) {
      // Groups of eight; the last may be padded, by up to 63 groups as some writers do.
      if (run * 8 > count - seen + 512) throw new Error(`a run claims ${run * 8} of ${count - seen} values`)
      seen += run * 8
      reader.at += run * width
    } else {
      if (run > count - seen) throw new Error(`a run claims ${run} of ${count - seen} values`)
      seen += run
      reader.at += (width + 7) >> 3
    }
  }
}

/**
 * Checks a stretch of delta binary packing → the byte after it. Sizes of zero, negative ones and fractions make the library read
 * the same bytes for ever.
 */
function checkDeltas(bytes: Uint8Array, start: number, count: number): number {
  const reader = new ThriftReader(bytes, start)
  const blockSize = reader.varint()
  const miniblocks = reader.varint()
  const total = reader.varint()
  reader.varint() // first value
  const perMiniblock = blockSize / miniblocks
  if (!(blockSize > 0 && blockSize <= maxDeltaBlock && Number.isInteger(perMiniblock) && perMiniblock % 32 === 0)) {
    throw new Error(`blocks of ${blockSize} values in ${miniblocks} parts are not possible`)
  }
  if (total > count) throw new Error(`a page claims ${total} deltas for ${count} values`)
  for (let seen = 1; seen < total; ) {
    reader.varint() // least delta
    const widths = bytes.subarray(reader.at, reader.at + miniblocks)
    reader.at += miniblocks
    for (let i = 0; i < widths.length && seen < total; i++) {
      if (widths[i]! > 64) throw new Error(`deltas of ${widths[i]} bits are not possible`)
      reader.at += (widths[i]! * perMiniblock) / 8
      seen += perMiniblock
    }
    if (reader.at > bytes.length) throw new Error('deltas are cut off')
  }
  return reader.at
}

const bitsFor = (level: number): number => (level === 0 ? 0 : 32 - Math.clz32(level))

export interface ChunkShape {
  numValues: number
  maxDefinitionLevel: number
  maxRepetitionLevel: number
  isBoolean: boolean
  /** Decompresses a page; throws where the size is not credible. */
  decompress(page: Uint8Array, length: number): Uint8Array
}

const encodings = {
  plainDictionary: 2,
  rle: 3,
  deltaBinaryPacked: 5,
  deltaLengthByteArray: 6,
  deltaByteArray: 7,
  rleDictionary: 8,
}
const runEncodings = new Set([encodings.plainDictionary, encodings.rle, encodings.rleDictionary])

function numberOf(fields: ThriftStruct, id: number, name: string): number {
  const value = fields.get(id)
  if (typeof value !== 'number' || !(value >= 0)) throw new Error(`a page has no ${name}`)
  return value
}

function readUint32(bytes: Uint8Array, at: number): number {
  if (at + 4 > bytes.length) throw new Error('a page is cut off')
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(at, true)
}

/** Checks the values of a page, which begin at `at`. */
function checkValues(bytes: Uint8Array, at: number, encoding: number, count: number, isBoolean: boolean): void {
  if (runEncodings.has(encoding)) {
    if (isBoolean) checkRuns(bytes, at + 4, bytes.length, 1, count)
    else if (at < bytes.length) checkRuns(bytes, at + 1, bytes.length, bytes[at]!, count)
    return
  }
  const streams = encoding === encodings.deltaByteArray ? 2 : 1
  if (encoding >= encodings.deltaBinaryPacked && encoding <= encodings.deltaByteArray && at < bytes.length) {
    let position = at
    for (let i = 0; i < streams; i++) position = checkDeltas(bytes, position, count)
  }
}

/** Throws where the pages of a column chunk are not what their heads claim. */
export function checkColumnChunk(bytes: Uint8Array, shape: ChunkShape): void {
  let values = 0
  for (let at = 0; at < bytes.length - 1; ) {
    const reader = new ThriftReader(bytes, at)
    const head = reader.struct()
    const size = numberOf(head, 3, 'compressed size')
    const rawSize = numberOf(head, 2, 'uncompressed size')
    if (reader.at + size > bytes.length)
      throw new Error(`a page claims ${size} bytes and ${bytes.length - reader.at} are left`)
    const page = bytes.subarray(reader.at, reader.at + size)
    at = reader.at + size
    const first = head.get(5)
    const second = head.get(8)
    const dictionary = head.get(7)
    const claimed = [first, second, dictionary].map((part) =>
      part instanceof Map ? numberOf(part, 1, 'number of values') : 0,
    )
    if (Math.max(...claimed) > shape.numValues)
      throw new Error(`a page claims ${Math.max(...claimed)} of ${shape.numValues} values`)
    if (first instanceof Map) {
      const count = claimed[0]!
      const data = shape.decompress(page, rawSize)
      let position = 0
      for (const level of [shape.maxRepetitionLevel, shape.maxDefinitionLevel]) {
        if (level === 0) continue
        const length = readUint32(data, position)
        if (position + 4 + length > data.length) throw new Error('the levels of a page are longer than the page')
        checkRuns(data, position + 4, position + 4 + length, bitsFor(level), count)
        position += 4 + length
      }
      checkValues(data, position, numberOf(first, 2, 'encoding'), count, shape.isBoolean)
      values += count
    } else if (second instanceof Map) {
      const count = claimed[1]!
      const repetitionBytes = numberOf(second, 6, 'length of repetition levels')
      const definitionBytes = numberOf(second, 5, 'length of definition levels')
      const levelBytes = repetitionBytes + definitionBytes
      if (levelBytes > size || levelBytes > rawSize) throw new Error('the levels of a page are longer than the page')
      if (numberOf(second, 2, 'number of nulls') > count) throw new Error('a page claims more nulls than values')
      if (shape.maxRepetitionLevel > 0) checkRuns(page, 0, repetitionBytes, bitsFor(shape.maxRepetitionLevel), count)
      if (shape.maxDefinitionLevel > 0)
        checkRuns(page, repetitionBytes, levelBytes, bitsFor(shape.maxDefinitionLevel), count)
      const isCompressed = second.get(7) !== 0
      const body = page.subarray(levelBytes)
      const data = isCompressed ? shape.decompress(body, rawSize - levelBytes) : body
      checkValues(data, 0, numberOf(second, 4, 'encoding'), count, shape.isBoolean)
      values += count
    }
  }
  if (values > shape.numValues) throw new Error(`its pages hold ${values} values and ${shape.numValues} were promised`)
}
