// A reader for the reference tensors that shares no code with the importer under test.
import { readFileSync } from 'node:fs'
import type { Tensor } from '../ops/oracle.js'

export function readTensors(file: string): Map<string, Tensor> {
  const bytes = readFileSync(file)
  const headerLength = Number(bytes.readBigUInt64LE(0))
  const header = JSON.parse(bytes.subarray(8, 8 + headerLength).toString('utf8')) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >
  const tensors = new Map<string, Tensor>()
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue
    const [from, to] = entry.data_offsets
    const raw = bytes.buffer.slice(bytes.byteOffset + 8 + headerLength + from, bytes.byteOffset + 8 + headerLength + to)
    if (entry.dtype === 'F32') tensors.set(name, { dtype: 'f32', shape: entry.shape, data: new Float32Array(raw) })
    else if (entry.dtype === 'F64') tensors.set(name, { dtype: 'f64', shape: entry.shape, data: new Float64Array(raw) })
    else if (entry.dtype === 'I32') tensors.set(name, { dtype: 'i32', shape: entry.shape, data: new Int32Array(raw) })
    else throw new Error(`${file}: ${name} is ${entry.dtype}`)
  }
  return tensors
}
