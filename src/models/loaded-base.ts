// A base in memory: mapped weights that every graph's leaves are bound to (stop 5).
import type { LeafMemory } from '../runtime/bind.js'
import type { DeviceBuffer, Runtime } from '../runtime/types.js'
import type { Architecture } from './architecture.js'
import { openBase, type OpenedBase } from './base-directory.js'
import type { ModelConfig } from './config.js'
import type { WeightFormats } from './context.js'
import { architectureOf } from './index.js'

export interface LoadedBase {
  readonly runtime: Runtime
  readonly config: ModelConfig
  readonly architecture: Architecture
  readonly formats: WeightFormats
  /** Bytes of weights that a run may touch. */
  readonly mappedBytes: number
  /** Memory of a weight leaf; null for names that are not weights. */
  leaf(name: string): LeafMemory | null
  close(): void
}

/** Maps the weights of a base directory. Nothing is read until it is used. */
export async function loadBase(runtime: Runtime, base: OpenedBase | string): Promise<LoadedBase & { opened: OpenedBase }> {
  const opened = typeof base === 'string' ? await openBase(base) : base
  const weights = runtime.mapFile(opened.weightsPath)
  return {
    opened,
    runtime,
    config: opened.config,
    architecture: architectureOf(opened.config.modelType),
    formats: opened.formats,
    mappedBytes: weights.byteLength,
    leaf(name) {
      const tensor = opened.tensors.get(name)
      return tensor ? { buffer: weights, byteOffset: tensor.byteOffset } : null
    },
    close: () => weights.free(),
  }
}

/** A base whose weights lie in memory of the process, by leaf name (tests, random models). */
export function memoryBase(
  runtime: Runtime, config: ModelConfig, formats: WeightFormats, tensors: ReadonlyMap<string, Uint8Array>,
): LoadedBase {
  const buffers = new Map<string, DeviceBuffer>()
  for (const [name, bytes] of tensors) {
    const buffer = runtime.allocate(Math.max(64, bytes.byteLength))
    buffer.bytes.set(bytes)
    buffers.set(name, buffer)
  }
  return {
    runtime, config, formats,
    architecture: architectureOf(config.modelType),
    mappedBytes: [...buffers.values()].reduce((n, b) => n + b.byteLength, 0),
    leaf(name) {
      const buffer = buffers.get(name)
      return buffer ? { buffer, byteOffset: 0 } : null
    },
    close() {
      for (const buffer of buffers.values()) buffer.free()
    },
  }
}
