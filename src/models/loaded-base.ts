// A base in memory: weights that every graph's leaves are bound to (stop 5).
import { loweredType } from '../compiler/ops/weight.js'
import type { LeafMemory } from '../runtime/bind.js'
import type { DeviceBuffer, DType, Runtime } from '../runtime/types.js'
import type { Architecture } from './architecture.js'
import { type OpenedBase, openBase } from './base-directory.js'
import type { ModelConfig } from './config.js'
import type { WeightFormats } from './context.js'
import { bfloat16ToFloat32, halfToFloat32 } from './float16.js'
import { architectureOf } from './index.js'
import { layInStripes, type Striping } from './stripes.js'

export interface LoadedBase {
  readonly runtime: Runtime
  readonly config: ModelConfig
  readonly architecture: Architecture
  readonly formats: WeightFormats
  /** Bytes of the weights. */
  readonly weightBytes: number
  /** Memory of a weight leaf; null for names that are not weights. */
  leaf(name: string): LeafMemory | null
  close(): void
}

/** Loads the weights of a base directory, as the runtime's kernels want them. */
export async function loadBase(
  runtime: Runtime,
  base: OpenedBase | string,
): Promise<LoadedBase & { opened: OpenedBase }> {
  const opened = typeof base === 'string' ? openBase(base) : base
  const striped = [...opened.tensors.values()].flatMap(({ byteOffset, byteLength, striping }) =>
    striping ? [{ byteOffset, byteLength, ...striping }] : [],
  )
  const weights = await runtime.loadFile(opened.weightsPath, striped)
  const widened = new WidenedTensors(runtime)
  return {
    opened,
    runtime,
    config: opened.config,
    architecture: architectureOf(opened.config.modelType),
    formats: opened.formats,
    weightBytes: weights.byteLength,
    leaf(name) {
      const tensor = opened.tensors.get(name)
      if (!tensor) return null
      return (
        widened.of(name, tensor.dtype, () => weights.read(tensor.byteOffset, tensor.byteLength)) ?? {
          buffer: weights,
          byteOffset: tensor.byteOffset,
        }
      )
    },
    close() {
      weights.free()
      widened.free()
    },
  }
}

export interface MemoryTensor {
  readonly dtype: DType
  /** Whole rows. */
  readonly bytes: Uint8Array
  readonly striping?: Striping | null
}

/** A base whose weights lie in memory of the process, by leaf name. */
export function memoryBase(
  runtime: Runtime,
  config: ModelConfig,
  formats: WeightFormats,
  tensors: ReadonlyMap<string, MemoryTensor>,
): LoadedBase {
  const widened = new WidenedTensors(runtime)
  const buffers = new Map<string, DeviceBuffer>()
  for (const [name, { bytes, striping }] of tensors) {
    const buffer = runtime.allocate(Math.max(64, bytes.byteLength))
    buffer.bytes.set(striping && runtime.info.kernels ? layInStripes(bytes, striping) : bytes)
    buffers.set(name, buffer)
  }
  return {
    runtime,
    config,
    formats,
    architecture: architectureOf(config.modelType),
    weightBytes: [...buffers.values()].reduce((n, b) => n + b.byteLength, 0),
    leaf(name) {
      const buffer = buffers.get(name)
      const tensor = tensors.get(name)
      if (!buffer || !tensor) return null
      return widened.of(name, tensor.dtype, () => tensor.bytes) ?? { buffer, byteOffset: 0 }
    },
    close() {
      for (const buffer of buffers.values()) buffer.free()
      widened.free()
    },
  }
}

/** f32 copies of 16-bit tensors for runtimes without kernels, whose graphs take no 16-bit floats. */
class WidenedTensors {
  private readonly runtime: Runtime
  private readonly copies = new Map<string, DeviceBuffer>()

  constructor(runtime: Runtime) {
    this.runtime = runtime
  }

  of(name: string, dtype: DType, read: () => Uint8Array): LeafMemory | null {
    if (this.runtime.info.kernels || loweredType(dtype) === dtype) return null
    let copy = this.copies.get(name)
    if (!copy) {
      const bytes = read()
      const bits = new Uint16Array(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength >> 1)
      copy = this.runtime.allocate(Math.max(64, bits.length * 4))
      const into = new Float32Array(copy.bytes.buffer as ArrayBuffer, copy.bytes.byteOffset, bits.length)
      if (dtype === 'f16') halfToFloat32(bits, into)
      else bfloat16ToFloat32(bits, into)
      this.copies.set(name, copy)
    }
    return { buffer: copy, byteOffset: 0 }
  }

  free(): void {
    for (const copy of this.copies.values()) copy.free()
  }
}
