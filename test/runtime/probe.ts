// The addon with the operators of probe.cc instead of ours.
import { existsSync } from 'node:fs'
import { openAddon } from '../../src/runtime/addon.js'
import { kernelLibraryPath } from '../../src/runtime/native.js'
import type { DeviceBuffer, Runtime } from '../../src/runtime/types.js'

const path = kernelLibraryPath('probe')

/** False where the native code is not built. */
export const hasProbe = existsSync(path)
if (!hasProbe) console.warn(`SKIPPED: ${path} is not built; run node kernels/build.mjs`)

export function openProbe(): Runtime {
  return openAddon({ kernelLibrary: path })
}

export function floats(buffer: DeviceBuffer): Float32Array {
  return new Float32Array(buffer.bytes.buffer, buffer.bytes.byteOffset, buffer.byteLength / 4)
}
