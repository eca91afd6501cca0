// The weight formats that can be read from a source or written to a base, by name. A format is added by its file, one
// line here and its parts in compiler/ops/weight.ts.
import { int4, int4sym, int8 } from './affine.js'
import { bf16, f16, f32 } from './dense.js'
import type { WeightFormat } from './format.js'
import { nf4 } from './nf4.js'

export const storedFormats = { f32, bf16, f16, int4, int4sym, int8, nf4 } as const satisfies Record<
  string,
  WeightFormat
>

export type StoredFormat = keyof typeof storedFormats

/** The format of that name, or undefined. */
export const findFormat = (name: string): WeightFormat | undefined =>
  Object.hasOwn(storedFormats, name) ? storedFormats[name as StoredFormat] : undefined

export type { PackError, Packer, PartSink, WeightFormat } from './format.js'
