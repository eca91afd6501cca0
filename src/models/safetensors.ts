// Reader of safetensors files (github.com/huggingface/safetensors, format section of the README): header checked as the
// reference implementation does (contiguous, complete, no overlap), tensor bytes on demand. Stop 5 of a run.
import { BinaryFile } from './binary-file.js'
import { FormatError } from './format-error.js'

/** Bytes per element of the dtypes of the format. */
export const dtypeBytes: Readonly<Record<string, number>> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  F64: 8,
  I64: 8,
  U64: 8,
}

/** The reference implementation refuses larger headers. */
export const MAX_HEADER_BYTES = 100_000_000

export interface SafetensorsEntry {
  name: string
  dtype: string
  shape: number[]
  /** Absolute offset in the file. */
  byteOffset: number
  byteLength: number
}

export interface SafetensorsFile {
  path: string
  metadata: Record<string, string>
  tensors: Map<string, SafetensorsEntry>
  /** Bytes `from` to `to` of a tensor (all of it by default), in a new 8-byte aligned buffer. */
  read(entry: SafetensorsEntry, from?: number, to?: number): Uint8Array
  close(): void
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

const isSize = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0

function parseHeader(file: BinaryFile, headerBytes: number): Record<string, unknown> {
  const text = new TextDecoder('utf-8', { fatal: true })
  try {
    const header: unknown = JSON.parse(text.decode(file.read(8, headerBytes, 'header')))
    if (!isRecord(header)) throw new Error('not a JSON object')
    return header
  } catch (error) {
    if (error instanceof FormatError) throw error
    throw new FormatError(file.path, 'header', (error as Error).message)
  }
}

function parseEntry(name: string, value: unknown, dataStart: number, path: string): SafetensorsEntry {
  const fail = (problem: string) => new FormatError(path, `tensor ${JSON.stringify(name)}`, problem)
  if (!isRecord(value)) throw fail('entry is no object')
  const { dtype, shape, data_offsets: offsets } = value
  const itemBytes = typeof dtype === 'string' && Object.hasOwn(dtypeBytes, dtype) ? dtypeBytes[dtype] : undefined
  if (itemBytes === undefined) throw fail(`unknown dtype ${JSON.stringify(dtype)}`)
  if (!Array.isArray(shape) || !shape.every(isSize)) throw fail(`invalid shape ${JSON.stringify(shape)}`)
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize) || offsets[0]! > offsets[1]!) {
    throw fail(`invalid data_offsets ${JSON.stringify(offsets)}`)
  }
  const [from, to] = offsets as [number, number]
  const byteLength = shape.reduce((product, size) => product * size, itemBytes)
  if (byteLength !== to - from) {
    throw fail(`${dtype} [${shape}] takes ${byteLength} bytes, data_offsets [${from}, ${to}] hold ${to - from}`)
  }
  return { name, dtype: dtype as string, shape: [...shape], byteOffset: dataStart + from, byteLength }
}

/** Every byte of the data section belongs to exactly one tensor. */
function checkCoverage(entries: SafetensorsEntry[], dataStart: number, file: BinaryFile): void {
  const sorted = [...entries].sort((a, b) => a.byteOffset - b.byteOffset || a.byteLength - b.byteLength)
  let end = dataStart
  for (const entry of sorted) {
    if (entry.byteOffset !== end) {
      const problem = entry.byteOffset < end ? 'overlaps the tensor before it' : 'leaves a gap before it'
      throw new FormatError(
        file.path,
        `tensor ${JSON.stringify(entry.name)}`,
        `${problem}: starts at byte ${entry.byteOffset}, expected ${end}`,
      )
    }
    end += entry.byteLength
  }
  if (end !== file.byteLength) {
    throw new FormatError(file.path, 'data', `tensors end at byte ${end}, the file has ${file.byteLength}`)
  }
}

/** Opens a safetensors file and checks its header against the file. Throws FormatError. */
export function openSafetensors(path: string): SafetensorsFile {
  const file = new BinaryFile(path)
  try {
    return readSafetensors(file)
  } catch (error) {
    file.close()
    throw error
  }
}

function readSafetensors(file: BinaryFile): SafetensorsFile {
  const start = file.read(0, 8, 'header length')
  const headerBytes = Number(new DataView(start.buffer).getBigUint64(0, true))
  if (headerBytes > MAX_HEADER_BYTES || 8 + headerBytes > file.byteLength) {
    throw new FormatError(
      file.path,
      'header length',
      `${headerBytes} bytes, at most ${Math.min(MAX_HEADER_BYTES, file.byteLength - 8)} are possible`,
    )
  }
  const header = parseHeader(file, headerBytes)
  const dataStart = 8 + headerBytes
  const metadata: Record<string, string> = Object.create(null)
  const tensors = new Map<string, SafetensorsEntry>()
  for (const [name, value] of Object.entries(header)) {
    if (name !== '__metadata__') {
      tensors.set(name, parseEntry(name, value, dataStart, file.path))
      continue
    }
    if (!isRecord(value) || !Object.values(value).every((text) => typeof text === 'string')) {
      throw new FormatError(file.path, '__metadata__', 'not an object of strings')
    }
    Object.assign(metadata, value)
  }
  checkCoverage([...tensors.values()], dataStart, file)
  return {
    path: file.path,
    metadata,
    tensors,
    read: (entry, from = 0, to = entry.byteLength) =>
      file.read(entry.byteOffset + from, to - from, `tensor ${JSON.stringify(entry.name)}`),
    close: () => file.close(),
  }
}
