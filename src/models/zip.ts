// One member of a zip archive (a Python wheel), found by its central directory and inflated as a stream: the archive is
// never held in memory. APPNOTE.TXT sections 4.3 and 4.5; no encryption, no archives over several files.
import { Readable } from 'node:stream'
import { createInflateRaw } from 'node:zlib'
import { BinaryFile, CHUNK_BYTES } from './binary-file.js'
import { FormatError } from './format-error.js'

export interface ZipMember {
  name: string
  /** 0 stored, 8 deflated. */
  method: number
  compressedBytes: number
  byteLength: number
  headerOffset: number
}

const END = 0x06054b50
const CENTRAL = 0x02014b50
const LOCAL = 0x04034b50
const END_BYTES = 22
const MAX_COMMENT_BYTES = 65535
const ZIP64 = 0xffffffff

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

function findEnd(file: BinaryFile): { count: number; offset: number; byteLength: number } {
  const tail = Math.min(file.byteLength, END_BYTES + MAX_COMMENT_BYTES)
  const view = viewOf(file.read(file.byteLength - tail, tail, 'end of the archive'))
  for (let at = tail - END_BYTES; at >= 0; at--) {
    if (view.getUint32(at, true) !== END) continue
    return {
      count: view.getUint16(at + 10, true),
      byteLength: view.getUint32(at + 12, true),
      offset: view.getUint32(at + 16, true),
    }
  }
  throw new FormatError(file.path, 'end of the archive', 'not a zip file')
}

/** Members of an archive by name. */
function readDirectory(file: BinaryFile): Map<string, ZipMember> {
  const { count, offset, byteLength } = findEnd(file)
  const place = 'central directory'
  const bytes = file.read(offset, byteLength, place)
  const view = viewOf(bytes)
  const members = new Map<string, ZipMember>()
  let at = 0
  for (let i = 0; i < count; i++) {
    if (at + 46 > byteLength || view.getUint32(at, true) !== CENTRAL) {
      throw new FormatError(file.path, place, `entry ${i} is malformed`)
    }
    const nameBytes = view.getUint16(at + 28, true)
    const next = at + 46 + nameBytes + view.getUint16(at + 30, true) + view.getUint16(at + 32, true)
    if (next > byteLength) throw new FormatError(file.path, place, `entry ${i} reaches beyond the directory`)
    const name = Buffer.from(bytes.buffer, bytes.byteOffset + at + 46, nameBytes).toString('utf8')
    const member = {
      name,
      method: view.getUint16(at + 10, true),
      compressedBytes: view.getUint32(at + 20, true),
      byteLength: view.getUint32(at + 24, true),
      headerOffset: view.getUint32(at + 42, true),
    }
    if ([member.compressedBytes, member.byteLength, member.headerOffset].includes(ZIP64)) {
      throw new FormatError(file.path, `member ${JSON.stringify(name)}`, 'zip64 sizes are not supported')
    }
    members.set(name, member)
    at = next
  }
  return members
}

function* readPieces(file: BinaryFile, from: number, byteLength: number, place: string): Generator<Uint8Array> {
  for (let at = 0; at < byteLength; at += CHUNK_BYTES) {
    yield file.read(from + at, Math.min(CHUNK_BYTES, byteLength - at), place)
  }
}

/** The content of a member, as a stream. The caller hashes it: the archive's CRC is not checked. Throws FormatError. */
export function openZipMember(path: string, name: string): { byteLength: number; stream: Readable; close(): void } {
  const file = new BinaryFile(path)
  try {
    const member = readDirectory(file).get(name)
    const place = `member ${JSON.stringify(name)}`
    if (!member) throw new FormatError(path, place, 'not in the archive')
    const header = viewOf(file.read(member.headerOffset, 30, place))
    if (header.getUint32(0, true) !== LOCAL) throw new FormatError(path, place, 'its header is malformed')
    if (member.method !== 0 && member.method !== 8) {
      throw new FormatError(path, place, `compression method ${member.method} is not supported`)
    }
    const from = member.headerOffset + 30 + header.getUint16(26, true) + header.getUint16(28, true)
    const raw = Readable.from(readPieces(file, from, member.compressedBytes, place))
    const inflate = createInflateRaw()
    raw.on('error', (error) => inflate.destroy(error))
    const stream = member.method === 0 ? raw : raw.pipe(inflate)
    return { byteLength: member.byteLength, stream, close: () => file.close() }
  } catch (error) {
    file.close()
    throw error
  }
}
