// Quantization and GGUF decoding against the reference values: codes, scales and decoded values exactly.
import { readFileSync } from 'node:fs'
import { afterAll, describe, expect, it } from 'vitest'
import { encodeBlock, signedMaxScale } from '../../src/models/formats/affine.js'
import { storedFormats, type WeightFormat } from '../../src/models/formats/index.js'
import {
  dequantizeScales,
  dynamicMap,
  nf4Table,
  quantizeNf4Block,
  quantizeScales,
} from '../../src/models/formats/nf4.js'
import { ggmlTypes } from '../../src/models/ggml-types.js'
import { openGguf } from '../../src/models/gguf.js'
import { openSafetensors } from '../../src/models/safetensors.js'
import { goldenDir } from './folder.js'

const read = <T>(name: string): T => JSON.parse(readFileSync(goldenDir('quant', name), 'utf8')) as T
const u8 = (base64: string): Uint8Array => new Uint8Array(Buffer.from(base64, 'base64'))
const f32 = (base64: string): Float32Array => new Float32Array(u8(base64).buffer)
const bits = (values: Float32Array): number[] => [...new Uint32Array(values.buffer, values.byteOffset, values.length)]
const skipped: string[] = []

afterAll(() => {
  if (skipped.length > 0) console.warn(`not in the index maps, skipped: ${skipped.join(', ')}`)
})

interface BlockCase {
  type: string
  ggmlType: number
  blockValues: number
  blockBytes: number
  rows: number
  cols: number
  bytes: string
  dequantizedF32: string
}

/** Values of a GGUF tensor through the packed form that an import writes. */
function decodeNative(ggmlType: number, bytes: Uint8Array, rows: number, columns: number): Float32Array {
  const { native, blockBytes } = ggmlTypes.get(ggmlType)!
  const format = storedFormats[native!.format as keyof typeof storedFormats]
  const parts = native!.toParts(bytes, bytes.byteLength / blockBytes)
  return format.unpack(parts, columns, native!.block, 0, rows)
}

describe('GGUF blocks', () => {
  for (const block of read<{ types: BlockCase[] }>('gguf-blocks.json').types) {
    const type = ggmlTypes.get(block.ggmlType)
    it(`${block.type}: sizes`, () => {
      expect(type).toMatchObject({ name: block.type, blockValues: block.blockValues, blockBytes: block.blockBytes })
    })
    if (!type?.native) {
      skipped.push(`GGUF ${block.type}`)
      continue
    }
    it(`${block.type}: values`, () => {
      const values = decodeNative(block.ggmlType, u8(block.bytes), block.rows, block.cols)
      expect(bits(values)).toEqual(bits(f32(block.dequantizedF32)))
    })
  }
})

interface TinyFile {
  file: string
  version: number
  alignment: number
  dataStart: number
  metadata: Record<string, { type: string; value: unknown; itemType?: string }>
  tensors: {
    name: string
    type: string
    ggmlType: number
    dims: number[]
    shape: number[]
    offset: number
    absoluteOffset: number
    byteLength: number
    values: number[] | string
  }[]
}

describe('GGUF file', () => {
  const expected = read<TinyFile>('tiny.json')
  const file = openGguf(goldenDir('quant', expected.file))
  afterAll(() => file.close())

  it('reads the header', () => {
    expect(file).toMatchObject({
      version: expected.version,
      alignment: expected.alignment,
      dataStart: expected.dataStart,
    })
  })

  it('reads metadata of every type', () => {
    const plain = (value: unknown): unknown =>
      Array.isArray(value) ? value.map(plain) : typeof value === 'bigint' ? value.toString() : value
    const found = Object.fromEntries(
      [...file.metadata].map(([key, { type, value, itemType }]) => [
        key,
        { type, value: plain(value), ...(itemType ? { itemType } : {}) },
      ]),
    )
    expect(found).toEqual(expected.metadata)
  })

  it('reads the tensor table and the tensors', () => {
    expect([...file.tensors.keys()]).toEqual(expected.tensors.map(({ name }) => name))
    for (const { name, type, ggmlType, values, ...place } of expected.tensors) {
      const tensor = file.tensors.get(name)!
      expect(tensor, name).toMatchObject(place)
      expect({ type: tensor.type.name, id: tensor.type.id }, name).toEqual({ type, id: ggmlType })
      const bytes = file.read(tensor)
      expect(bytes.byteLength, name).toBe(place.byteLength)
      if (Array.isArray(values)) expect([...new Float32Array(bytes.buffer)], name).toEqual(values)
    }
  })
})

interface BnbCase {
  matrix: string
  quantType: string
  doubleQuant: boolean
  blockSize: number
  packedU8?: string
  code: number[]
  dequantizedF32?: string
  absmaxF32?: string
  absmaxU8?: string
  offset?: number
  nestedBlockSize?: number
  nestedAbsmax?: number[]
  nestedCode?: number[]
  absmaxDequantizedF32?: string
}

interface BnbFile {
  matrices: Record<string, { shape: [number, number]; dataF32: string }>
  cases: BnbCase[]
  stateDict: {
    file: string
    tensors: Record<string, { dtype: string; shape: number[] }>
    weights: Record<string, { stateKey: string; state: unknown }>
  }
}

/** Codes and block maxima of a flat matrix; the last block may be short. */
function quantizeNf4(values: Float32Array, block: number) {
  const codes = new Uint8Array(values.length)
  const absmax = new Float32Array(Math.ceil(values.length / block))
  for (let b = 0; b < absmax.length; b++) {
    const from = b * block
    const to = Math.min(values.length, from + block)
    absmax[b] = quantizeNf4Block(values, from, to, codes.subarray(from, to))
  }
  return { codes, absmax }
}

const bnb = read<BnbFile>('bnb.json')

describe('NF4', () => {
  for (const [index, record] of bnb.cases.entries()) {
    const { matrix, quantType, blockSize, doubleQuant } = record
    const name = `${index}: ${matrix}, ${quantType}, block ${blockSize}${doubleQuant ? ', double' : ''}`
    if (quantType !== 'nf4') {
      skipped.push(`bitsandbytes ${name}`)
      continue
    }
    it(name, () => {
      const values = f32(bnb.matrices[matrix]!.dataF32)
      expect([...nf4Table]).toEqual([...new Float32Array(record.code)])
      const { codes, absmax } = quantizeNf4(values, blockSize)
      if (record.packedU8) {
        // bitsandbytes has the even element in the high nibble, and pads an odd count with the code of 0.
        const packed = new Uint8Array(Math.ceil(codes.length / 2)).map(
          (_, i) => (codes[2 * i]! << 4) | (codes[2 * i + 1] ?? 7),
        )
        expect([...packed]).toEqual([...u8(record.packedU8)])
      }
      let scales: Float32Array = absmax
      if (doubleQuant) {
        const nested = quantizeScales(absmax)
        expect([...dynamicMap]).toEqual([...new Float32Array(record.nestedCode!)])
        expect([...nested.codes]).toEqual([...u8(record.absmaxU8!)])
        expect([...nested.nestedAbsmax].map((v, i) => v / record.nestedAbsmax![i]!)).toEqual(
          record.nestedAbsmax!.map(() => expect.closeTo(1, 6)),
        )
        expect(nested.offset / record.offset!).toBeCloseTo(1, 6)
        const reference = {
          codes: nested.codes,
          nestedAbsmax: new Float32Array(record.nestedAbsmax!),
          offset: Math.fround(record.offset!),
        }
        scales = dequantizeScales(reference)
        expect(bits(scales)).toEqual(bits(f32(record.absmaxDequantizedF32!)))
      } else if (record.absmaxF32) expect(bits(absmax)).toEqual(bits(f32(record.absmaxF32)))
      if (record.dequantizedF32) {
        const decoded = new Float32Array(codes.length).map(
          (_, i) => nf4Table[codes[i]!]! * scales[Math.floor(i / blockSize)]!,
        )
        expect(bits(decoded)).toEqual(bits(f32(record.dequantizedF32)))
      }
    })
  }

  it('packs and unpacks through our layout', () => {
    const format: WeightFormat = storedFormats.nf4
    const block = format.blocks[0]!
    for (const [name, { shape, dataF32 }] of Object.entries(bnb.matrices)) {
      const [rows, columns] = shape
      if (columns % block !== 0) continue
      const values = f32(dataF32)
      const { codes, absmax } = quantizeNf4(values, block)
      const scales = dequantizeScales(quantizeScales(absmax))
      const expected = new Float32Array(codes.length).map(
        (_, i) => nf4Table[codes[i]!]! * scales[Math.floor(i / block)]!,
      )
      const parts = [0, 1, 2, 3].map(() => new Uint8Array(values.length * 4))
      const packer = format.createPacker!(rows, columns, block, (part, bytes, at) => parts[part]!.set(bytes, at))
      const half = Math.floor(rows / 2) * columns
      packer.rows(values.subarray(0, half), 0)
      packer.rows(values.subarray(half), half / columns)
      const { sumOfSquares, errorSquares } = packer.finish()
      const unpacked = format.unpack(parts, columns, block, 0, rows)
      expect(bits(unpacked), name).toEqual(bits(expected))
      const error = values.reduce((sum, value, i) => sum + (value - unpacked[i]!) ** 2, 0)
      expect(errorSquares, name).toBeGreaterThanOrEqual(0)
      expect(Math.abs(errorSquares - error), name).toBeLessThanOrEqual(1e-6 * sumOfSquares)
    }
  })

  it('reads a checkpoint that bitsandbytes saved', () => {
    const names: Record<string, string> = { U8: 'uint8', F32: 'float32', F16: 'float16', BF16: 'bfloat16' }
    const file = openSafetensors(goldenDir('quant', bnb.stateDict.file))
    const found = Object.fromEntries(
      [...file.tensors.values()].map(({ name, dtype, shape }) => [name, { dtype: names[dtype], shape }]),
    )
    expect(found).toEqual(bnb.stateDict.tensors)
    for (const { stateKey, state } of Object.values(bnb.stateDict.weights)) {
      expect(JSON.parse(new TextDecoder().decode(file.read(file.tensors.get(stateKey)!)))).toEqual(state)
    }
    file.close()
  })
})

interface Int4File {
  inputs: Record<string, { N: number; K: number; weightF32: string }>
  matMulNBits: {
    input: string
    mode: string
    blockSize: number
    blocksPerRow: number
    BU8: string
    scalesF32: string
    zeroPointsU8?: string
    dequantizedF32?: string
  }[]
}

describe('INT4 codes of the layout that MatMulNBits shares with ours', () => {
  const { inputs, matMulNBits } = read<Int4File>('int4.json')
  for (const record of matMulNBits) {
    const { input, mode, blockSize, blocksPerRow } = record
    it(`${input}, ${mode}, block ${blockSize}`, () => {
      const { N, K, weightF32 } = inputs[input]!
      const weights = f32(weightF32)
      const scales = f32(record.scalesF32)
      const zeroPoints = record.zeroPointsU8 ? u8(record.zeroPointsU8) : null
      const packed = u8(record.BU8)
      const expected = record.dequantizedF32 ? f32(record.dequantizedF32) : null
      const codes = new Int32Array(blockSize)
      const range = { minCode: 0, maxCode: 15, zeroPoint: 8 }
      for (let n = 0; n < N; n++) {
        for (let b = 0; b < blocksPerRow; b++) {
          const scale = scales[n * blocksPerRow + b]!
          const byte = zeroPoints?.[n * Math.ceil(blocksPerRow / 2) + (b >> 1)]
          const zeroPoint = byte === undefined ? 8 : (byte >> ((b & 1) * 4)) & 15
          const from = n * K + b * blockSize
          const count = Math.min(blockSize, K - b * blockSize)
          if (mode === 'symmetricSignedMax') {
            expect(Math.fround(signedMaxScale(weights, from, from + count))).toBe(scale)
          }
          encodeBlock(weights, from, count, scale, -zeroPoint * scale, { ...range, zeroPoint }, codes)
          for (let i = 0; i < count; i++) {
            const stored = packed[((n * blocksPerRow + b) * blockSize + i) >> 1]!
            expect(codes[i], `row ${n} block ${b} element ${i}`).toBe((stored >> ((i & 1) * 4)) & 15)
            if (expected) expect(Math.fround((codes[i]! - zeroPoint) * scale)).toBe(expected[from + i]!)
          }
        }
      }
    })
  }
})
