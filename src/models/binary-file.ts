// Random access to a file by descriptor with bounds checks: nothing is ever read whole, a length is checked against the
// file before memory is taken for it. Under the GGUF and safetensors readers (stop 5 of a run).
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { FormatError } from './format-error.js'

/** Part of a file read at a time where a cursor runs through it, and the unit of copies. */
export const CHUNK_BYTES = 1 << 20

/** A file open for reading at any offset. */
export class BinaryFile {
  readonly path: string
  readonly byteLength: number
  private fd: number

  constructor(path: string) {
    this.path = path
    try {
      this.fd = openSync(path, 'r')
    } catch (error) {
      throw new FormatError(path, 'opening', (error as Error).message)
    }
    const stat = fstatSync(this.fd)
    if (!stat.isFile()) {
      this.close()
      throw new FormatError(path, 'opening', 'not a regular file')
    }
    this.byteLength = stat.size
  }

  /** Reads exactly `byteLength` bytes at `byteOffset` into `into` (a new, 8-byte aligned buffer by default). */
  read(byteOffset: number, byteLength: number, place: string, into?: Uint8Array): Uint8Array {
    if (!(byteOffset >= 0 && byteLength >= 0 && byteOffset + byteLength <= this.byteLength)) {
      throw new FormatError(
        this.path,
        place,
        `needs bytes ${byteOffset} to ${byteOffset + byteLength}, the file has ${this.byteLength}`,
      )
    }
    const bytes = into ? into.subarray(0, byteLength) : new Uint8Array(byteLength)
    let done = 0
    while (done < byteLength) {
      const got = readSync(this.fd, bytes, done, byteLength - done, byteOffset + done)
      if (got === 0) throw new FormatError(this.path, place, 'the file became shorter while it was read')
      done += got
    }
    return bytes
  }

  close(): void {
    if (this.fd >= 0) closeSync(this.fd)
    this.fd = -1
  }
}

/** Reads little-endian values one after another, through a window of the file. */
export class FileCursor {
  private readonly file: BinaryFile
  private window: Uint8Array = new Uint8Array(0)
  private view: DataView = new DataView(new ArrayBuffer(0))
  private windowStart = 0
  /** Absolute offset of the next byte. */
  position: number

  constructor(file: BinaryFile, position = 0) {
    this.file = file
    this.position = position
  }

  get remaining(): number {
    return this.file.byteLength - this.position
  }

  /** Makes `byteLength` bytes available and returns their index in the window; the position moves behind them. */
  private take(byteLength: number, place: string): number {
    let at = this.position - this.windowStart
    if (at < 0 || at + byteLength > this.window.byteLength) {
      if (byteLength > this.remaining) {
        throw new FormatError(
          this.file.path,
          `${place} at byte ${this.position}`,
          `needs ${byteLength} bytes, the file has ${this.remaining} left`,
        )
      }
      const size = Math.min(Math.max(byteLength, CHUNK_BYTES), this.remaining)
      this.window = this.file.read(this.position, size, place)
      this.view = new DataView(this.window.buffer, this.window.byteOffset, this.window.byteLength)
      this.windowStart = this.position
      at = 0
    }
    this.position += byteLength
    return at
  }

  u8(place: string): number {
    const at = this.take(1, place)
    return this.view.getUint8(at)
  }
  i8(place: string): number {
    const at = this.take(1, place)
    return this.view.getInt8(at)
  }
  u16(place: string): number {
    const at = this.take(2, place)
    return this.view.getUint16(at, true)
  }
  i16(place: string): number {
    const at = this.take(2, place)
    return this.view.getInt16(at, true)
  }
  u32(place: string): number {
    const at = this.take(4, place)
    return this.view.getUint32(at, true)
  }
  i32(place: string): number {
    const at = this.take(4, place)
    return this.view.getInt32(at, true)
  }
  f32(place: string): number {
    const at = this.take(4, place)
    return this.view.getFloat32(at, true)
  }
  f64(place: string): number {
    const at = this.take(8, place)
    return this.view.getFloat64(at, true)
  }
  u64(place: string): bigint {
    const at = this.take(8, place)
    return this.view.getBigUint64(at, true)
  }
  i64(place: string): bigint {
    const at = this.take(8, place)
    return this.view.getBigInt64(at, true)
  }

  /** A 64-bit count that must be usable as a JavaScript number. */
  count(place: string): number {
    const at = this.position
    const value = this.u64(place)
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw new FormatError(this.file.path, `${place} at byte ${at}`, `${value} is too large`)
    }
    return Number(value)
  }

  utf8(byteLength: number, place: string): string {
    const at = this.take(byteLength, place)
    return Buffer.from(this.window.buffer, this.window.byteOffset + at, byteLength).toString('utf8')
  }
}
