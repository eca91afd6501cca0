// Writes small GGUF files for tests, plainly and without the reader's code.
import { writeFileSync } from 'node:fs'

export type MetaValue =
  | { u32: number }
  | { f32: number }
  | { bool: boolean }
  | { text: string }
  | { texts: string[] }
  | { i32s: number[] }
  | { f32s: number[] }

export interface GgufTensorInput {
  name: string
  /** In file order, fastest first. */
  dims: number[]
  type: number
  bytes: Uint8Array
}

const u32 = (value: number) => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}
const u64 = (value: number) => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(value))
  return bytes
}
const text = (value: string) => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)])
const f32 = (value: number) => {
  const bytes = Buffer.alloc(4)
  bytes.writeFloatLE(value)
  return bytes
}

function encode(value: MetaValue): Buffer {
  if ('u32' in value) return Buffer.concat([u32(4), u32(value.u32)])
  if ('f32' in value) return Buffer.concat([u32(6), f32(value.f32)])
  if ('bool' in value) return Buffer.concat([u32(7), Buffer.from([value.bool ? 1 : 0])])
  if ('text' in value) return Buffer.concat([u32(8), text(value.text)])
  const array = (type: number, items: Buffer[]) => Buffer.concat([u32(9), u32(type), u64(items.length), ...items])
  if ('texts' in value) return array(8, value.texts.map(text))
  if ('i32s' in value) return array(5, value.i32s.map(u32))
  return array(6, value.f32s.map(f32))
}

export function writeGguf(path: string, metadata: Record<string, MetaValue>, tensors: GgufTensorInput[]): void {
  const head: Buffer[] = [Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(Object.keys(metadata).length)]
  for (const [key, value] of Object.entries(metadata)) head.push(text(key), encode(value))
  const data: Buffer[] = []
  let offset = 0
  for (const { name, dims, type, bytes } of tensors) {
    head.push(text(name), u32(dims.length), ...dims.map(u64), u32(type), u64(offset))
    const padding = (32 - (bytes.byteLength % 32)) % 32
    data.push(Buffer.from(bytes), Buffer.alloc(padding))
    offset += bytes.byteLength + padding
  }
  const header = Buffer.concat(head)
  writeFileSync(path, Buffer.concat([header, Buffer.alloc((32 - (header.length % 32)) % 32), ...data]))
}

export const floats = (values: ArrayLike<number>): Uint8Array => new Uint8Array(Float32Array.from(values).buffer)
