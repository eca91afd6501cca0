// Writer of safetensors files: the header from the list of tensors, then their bytes in any order and in pieces. The file
// is written aside, flushed to disk and renamed, so a reader sees the old one or the whole new one.
import { closeSync, fsyncSync, ftruncateSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import { dirname } from 'node:path'
import { dtypeBytes } from './safetensors.js'

export interface TensorSpec {
  name: string
  dtype: string
  shape: readonly number[]
}

export interface SafetensorsWriter {
  /** Writes bytes of a tensor from `byteOffset` inside it. */
  write(name: string, bytes: Uint8Array, byteOffset?: number): void
  /** Checks that every byte was written, flushes and renames to the final path. */
  finish(): void
  /** Removes what was written. */
  abort(): void
}

export interface WriterOptions {
  metadata?: Record<string, string>
  /** Every tensor starts at a multiple of this (default 1). Filler tensors `__align__.N` keep the file free of gaps. */
  alignment?: number
}

/** Name of the fillers between aligned tensors; the format allows no gaps. */
export const FILLER_PREFIX = '__align__.'

const byteLengthOf = (spec: TensorSpec) =>
  spec.shape.reduce((product, size) => product * size, dtypeBytes[spec.dtype] ?? Number.NaN)

interface Placed extends TensorSpec {
  byteOffset: number
  byteLength: number
}

/** Places tensors in the given order, with fillers where alignment asks for them. */
function placeTensors(specs: readonly TensorSpec[], alignment: number): Placed[] {
  const placed: Placed[] = []
  let end = 0
  for (const spec of specs) {
    const byteLength = byteLengthOf(spec)
    if (!Number.isSafeInteger(byteLength)) {
      throw new Error(`tensor ${spec.name}: cannot write ${spec.dtype} [${spec.shape}]`)
    }
    const gap = (alignment - (end % alignment)) % alignment
    if (gap > 0) {
      const name = `${FILLER_PREFIX}${placed.length}`
      placed.push({ name, dtype: 'U8', shape: [gap], byteOffset: end, byteLength: gap })
      end += gap
    }
    placed.push({ ...spec, byteOffset: end, byteLength })
    end += byteLength
  }
  return placed
}

function headerOf(placed: Placed[], metadata: Record<string, string> | undefined, alignment: number): Uint8Array {
  const fields: Record<string, unknown> = {}
  if (metadata) fields.__metadata__ = metadata
  for (const { name, dtype, shape, byteOffset, byteLength } of placed) {
    fields[name] = { dtype, shape, data_offsets: [byteOffset, byteOffset + byteLength] }
  }
  const json = Buffer.from(JSON.stringify(fields))
  // The data section starts aligned: spaces at the end of the header, as the format allows.
  const unit = Math.max(8, alignment)
  const padded = Math.ceil((8 + json.length) / unit) * unit
  const header = new Uint8Array(padded).fill(0x20)
  new DataView(header.buffer).setBigUint64(0, BigInt(padded - 8), true)
  header.set(json, 8)
  return header
}

/** Orders tensors as the reference implementation does: widest dtype first, then by name. */
export function referenceOrder<T extends TensorSpec>(specs: readonly T[]): T[] {
  return [...specs].sort(
    (a, b) => dtypeBytes[b.dtype]! - dtypeBytes[a.dtype]! || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0),
  )
}

function writeAll(fd: number, bytes: Uint8Array, position: number): void {
  let done = 0
  while (done < bytes.byteLength) done += writeSync(fd, bytes, done, bytes.byteLength - done, position + done)
}

/** Flushes a directory's entries; file systems that cannot do that are left alone. */
export function syncDirectory(path: string): void {
  try {
    const fd = openSync(path, 'r')
    try {
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
  } catch {
    // Windows and some network file systems refuse to open or flush a directory.
  }
}

/** Starts a safetensors file at `path` with exactly these tensors, laid out in the order given. */
export function createSafetensors(
  path: string,
  specs: readonly TensorSpec[],
  options: WriterOptions = {},
): SafetensorsWriter {
  const alignment = options.alignment ?? 1
  const placed = placeTensors(specs, alignment)
  const byName = new Map(placed.map((tensor) => [tensor.name, tensor]))
  if (byName.size !== placed.length) throw new Error(`${path}: two tensors have the same name`)
  const header = headerOf(placed, options.metadata, alignment)
  const last = placed.at(-1)
  const end = last ? last.byteOffset + last.byteLength : 0
  const aside = `${path}.${process.pid}.partial`
  const fd = openSync(aside, 'w')
  let isOpen = true
  const abort = () => {
    if (isOpen) closeSync(fd)
    isOpen = false
    rmSync(aside, { force: true })
  }
  const missing = new Map(specs.map((spec) => [spec.name, byName.get(spec.name)!.byteLength]))
  try {
    writeAll(fd, header, 0)
    // The rest reads as zero, fillers included.
    ftruncateSync(fd, header.byteLength + end)
  } catch (error) {
    abort()
    throw error
  }
  return {
    write(name, bytes, byteOffset = 0) {
      const tensor = byName.get(name)
      if (!tensor) throw new Error(`${path}: tensor ${name} is not in the header`)
      if (byteOffset < 0 || byteOffset + bytes.byteLength > tensor.byteLength) {
        throw new Error(
          `${path}: tensor ${name}: bytes ${byteOffset} to ${byteOffset + bytes.byteLength} of ${tensor.byteLength}`,
        )
      }
      writeAll(fd, bytes, header.byteLength + tensor.byteOffset + byteOffset)
      missing.set(name, missing.get(name)! - bytes.byteLength)
    },
    finish() {
      for (const [name, bytes] of missing) {
        if (bytes !== 0) {
          abort()
          throw new Error(`${path}: tensor ${name}: ${bytes} bytes were not written`)
        }
      }
      fsyncSync(fd)
      closeSync(fd)
      isOpen = false
      renameSync(aside, path)
      syncDirectory(dirname(path))
    },
    abort,
  }
}

/** Writes a whole safetensors file from tensors in memory, in the reference implementation's order. */
export function writeSafetensors(
  path: string,
  tensors: readonly (TensorSpec & { bytes: Uint8Array })[],
  metadata?: Record<string, string>,
): void {
  const ordered = referenceOrder(tensors)
  const writer = createSafetensors(path, ordered, metadata ? { metadata } : {})
  try {
    for (const tensor of ordered) writer.write(tensor.name, tensor.bytes)
    writer.finish()
  } catch (error) {
    writer.abort()
    throw error
  }
}
