// Weights that are not quantized: float32, bfloat16, and half precision, which is only read from sources.
import { bfloat16ToFloat32, float32ToBfloat16, float32ToHalf, halfToFloat32 } from '../float16.js'
import { bytesOf, viewF32, viewU16, type WeightFormat } from './format.js'

interface DenseOptions {
  name: string
  itemBytes: number
  encode(values: Float32Array): Float32Array | Uint16Array
  decode(bytes: Uint8Array): Float32Array
}

function defineDense(options: DenseOptions): WeightFormat {
  const { name, itemBytes, encode, decode } = options
  return {
    name,
    blocks: [1],
    columnsMultiple: () => 1,
    createPacker: (_rows, columns, _block, write) => {
      let sumOfSquares = 0
      let errorSquares = 0
      return {
        rows(values, firstRow) {
          const encoded = encode(values)
          const stored = decode(bytesOf(encoded))
          for (let i = 0; i < values.length; i++) {
            const value = values[i]!
            sumOfSquares += value * value
            errorSquares += (value - stored[i]!) ** 2
          }
          write(0, bytesOf(encoded), firstRow * columns * itemBytes)
        },
        finish: () => ({ sumOfSquares, errorSquares }),
      }
    },
    unpack: (parts, columns, _block, from, to) =>
      decode(parts[0]!.subarray(from * columns * itemBytes, to * columns * itemBytes)),
  }
}

export const f32 = defineDense({
  name: 'f32',
  itemBytes: 4,
  encode: (values) => values,
  decode: viewF32,
})

export const bf16 = defineDense({
  name: 'bf16',
  itemBytes: 2,
  encode: (values) => float32ToBfloat16(values),
  decode: (bytes) => bfloat16ToFloat32(viewU16(bytes)),
})

export const f16 = defineDense({
  name: 'f16',
  itemBytes: 2,
  encode: (values) => float32ToHalf(values),
  decode: (bytes) => halfToFloat32(viewU16(bytes)),
})
