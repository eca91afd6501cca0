// The runtime over our addon: sessions with the `espalier` operators, run off the event loop over native memory.
// The only door to kernels/addon.cc.

import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { onnxElementType } from '../compiler/graph.js'
import { allIsas, buildFolder, chooseThreads, kernelLibraryPath, onnxRuntimeLibraryPath } from './native.js'
import type {
  Binding,
  DeviceBuffer,
  Isa,
  MemoryStatistics,
  OpProfile,
  Program,
  ProgramDefinition,
  ProgramModel,
  RunOptions,
  RunResult,
  Runtime,
  RuntimeInfo,
  RuntimeOptions,
  StripedRange,
} from './types.js'

/** An opaque native object. */
interface Handle {
  readonly handle: unique symbol
}
interface NativeBinding {
  tensor: string
  handle: Handle
  byteOffset: number
  dtype: number
  shape: number[]
}
interface NativeStep {
  model: number
  name: string
  inputs: NativeBinding[]
  outputs: NativeBinding[]
}
interface Native {
  open(ortLibrary: string, threads: number): { version: string; threads: number }
  supportedIsas(): Isa[]
  loadKernels(path: string): Handle
  allocate(byteLength: number): { handle: Handle; bytes: Uint8Array }
  /** Four numbers a range: byteOffset, byteLength, rows, unitBytes. */
  loadFile(path: string, striped: Float64Array): Promise<{ handle: Handle; byteLength: number }>
  read(memory: Handle, byteOffset: number, byteLength: number): Uint8Array
  free(memory: Handle, view?: ArrayBufferLike): void
  createProgram(
    kernels: Handle,
    models: readonly ProgramModel[],
    dims: readonly string[],
    steps: NativeStep[],
    profiles: boolean,
  ): Promise<Handle>
  createControl(): Handle
  cancel(control: Handle): void
  run(program: Handle, dims: Float64Array, from: number, to: number, control: Handle): Promise<Float64Array>
  profile(program: Handle): OpProfile[]
  close(program: Handle): Promise<void>
  measureCeiling(milliseconds: number): Promise<{ kind: 'fp32' | 'bf16'; gflops: number }>
  measureReadBandwidth(): Promise<number>
  memory(): MemoryStatistics
  trim(): void
}

/** The addon cannot be used here; the message says why and what to do. */
export class AddonUnavailableError extends Error {
  override name = 'AddonUnavailableError'
}

let loaded: { path: string; native: Native } | undefined
function loadAddon(): Native {
  const path = join(buildFolder(), 'espalier.node')
  if (loaded?.path === path) return loaded.native
  if (!existsSync(path))
    throw new AddonUnavailableError(
      `the native addon is not built (${path} is missing): install a C++17 compiler and CMake, then run \`npm run build\``,
    )
  try {
    loaded = { path, native: createRequire(import.meta.url)(path) as Native }
    return loaded.native
  } catch (error) {
    throw new AddonUnavailableError(
      `the native addon does not load (${(error as Error).message}): delete ${buildFolder()} and run \`npm run build\``,
    )
  }
}

/** Instruction sets that are built and that this processor has, best first; empty without the addon. */
export function usableIsas(): Isa[] {
  try {
    return usable(loadAddon())
  } catch (error) {
    if (error instanceof AddonUnavailableError) return []
    throw error
  }
}
function usable(native: Native): Isa[] {
  const supported = native.supportedIsas()
  return allIsas.filter((isa) => supported.includes(isa) && existsSync(kernelLibraryPath(isa)))
}

export interface AddonOptions extends RuntimeOptions {
  /** Another library of operators, for tests of the runtime itself. */
  kernelLibrary?: string
}

/**
 * @throws AddonUnavailableError when the addon is not built or does not load
 * @throws Error when the options cannot be met
 */
export function openAddon(options: AddonOptions = {}): Runtime {
  const native = loadAddon()
  const isas = usable(native)
  const wanted = options.isa ?? (process.env.ESPALIER_ISA || undefined)
  const isa = wanted === undefined ? isas[0] : isas.find((name) => name === wanted)
  if (isa === undefined && wanted !== undefined) {
    const known = (allIsas as readonly string[]).includes(wanted)
    const why = !known ? 'is not an instruction set' : 'is not built, or this processor does not have it'
    throw new Error(
      `${options.isa ? 'isa' : 'ESPALIER_ISA'} ${wanted} ${why}; possible here: ${isas.join(', ') || 'none'}`,
    )
  }
  if (isa === undefined) throw new AddonUnavailableError(`no kernel library in ${buildFolder()}: run \`npm run build\``)
  const explicit = options.threads !== undefined || !!process.env.ESPALIER_THREADS
  let ort: string
  try {
    ort = onnxRuntimeLibraryPath()
  } catch (error) {
    throw new AddonUnavailableError((error as Error).message)
  }
  const { version, threads } = openPool(native, ort, chooseThreads(options.threads), explicit)
  const kernels = native.loadKernels(options.kernelLibrary ?? kernelLibraryPath(isa))
  return new AddonRuntime(native, kernels, { kernels: true, provider: 'cpu', isa, isas, threads, ortVersion: version })
}

let pool: { version: string; threads: number } | undefined
function openPool(native: Native, ort: string, threads: number, explicit: boolean) {
  pool ??= native.open(ort, threads)
  // Fails, naming both numbers, where another was asked for in so many words.
  return explicit && threads !== pool.threads ? native.open(ort, threads) : pool
}

class AddonRuntime implements Runtime {
  readonly #native: Native
  readonly #kernels: Handle
  readonly info: RuntimeInfo
  readonly #programs = new Set<AddonProgram>()
  readonly #buffers = new Set<WeakRef<AddonBuffer>>()
  #isClosed = false

  constructor(native: Native, kernels: Handle, info: RuntimeInfo) {
    this.#native = native
    this.#kernels = kernels
    this.info = info
  }

  allocate(byteLength: number): DeviceBuffer {
    this.#assertOpen()
    const { handle, bytes } = this.#native.allocate(byteLength)
    return this.#keep(new AddonBuffer(this.#native, handle, byteLength, bytes))
  }

  async loadFile(path: string, striped: readonly StripedRange[] = []): Promise<DeviceBuffer> {
    this.#assertOpen()
    const numbers = striped.flatMap((range) => [range.byteOffset, range.byteLength, range.rows, range.unitBytes])
    const { handle, byteLength } = await this.#native.loadFile(path, Float64Array.from(numbers))
    return this.#keep(new AddonBuffer(this.#native, handle, byteLength, null))
  }

  async createProgram(definition: ProgramDefinition): Promise<Program> {
    this.#assertOpen()
    const steps = definition.steps.map((step) => ({
      model: step.model,
      name: step.name,
      inputs: nativeBindings(definition.dims, step.name, step.inputs),
      outputs: nativeBindings(definition.dims, step.name, step.outputs),
    }))
    const profiles = process.env.ESPALIER_PROFILE === '1'
    const handle = await this.#native.createProgram(this.#kernels, definition.models, definition.dims, steps, profiles)
    const program = new AddonProgram(this.#native, handle, [...definition.dims], steps.length, () =>
      this.#programs.delete(program),
    )
    this.#programs.add(program)
    return program
  }

  measureCeiling(milliseconds: number): Promise<{ kind: 'fp32' | 'bf16'; gflops: number }> {
    return this.#native.measureCeiling(milliseconds)
  }

  measureReadBandwidth(): Promise<number> {
    return this.#native.measureReadBandwidth()
  }

  memory(): MemoryStatistics {
    return this.#native.memory()
  }

  trim(): void {
    this.#native.trim()
  }

  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    await Promise.all([...this.#programs].map((program) => program.end()))
    for (const reference of this.#buffers) reference.deref()?.free()
    this.#buffers.clear()
    this.#native.trim()
  }

  #keep(buffer: AddonBuffer): AddonBuffer {
    this.#buffers.add(new WeakRef(buffer))
    return buffer
  }

  #assertOpen(): void {
    if (this.#isClosed) throw new Error('the runtime was closed')
  }
}

let nextBufferId = 1

class AddonBuffer implements DeviceBuffer {
  readonly id = nextBufferId++
  readonly byteLength: number
  readonly readOnly: boolean
  readonly #native: Native
  readonly handle: Handle
  readonly #view: Uint8Array | null
  #isFreed = false

  constructor(native: Native, handle: Handle, byteLength: number, view: Uint8Array | null) {
    this.#native = native
    this.handle = handle
    this.byteLength = byteLength
    this.#view = view
    this.readOnly = view === null
  }

  get bytes(): Uint8Array {
    if (!this.#view) throw new Error('a loaded file is read-only memory: use read(byteOffset, byteLength) for a copy')
    if (this.#isFreed) throw new Error('the buffer was freed')
    return this.#view
  }

  read(byteOffset: number, byteLength: number): Uint8Array {
    return this.#native.read(this.handle, byteOffset, byteLength)
  }

  free(): void {
    if (this.#isFreed) return
    this.#isFreed = true
    this.#native.free(this.handle, this.#view?.buffer)
  }
}

function nativeBindings(
  dims: readonly string[],
  step: string,
  bindings: Readonly<Record<string, Binding>>,
): NativeBinding[] {
  return Object.entries(bindings).map(([tensor, { buffer, byteOffset, dtype, shape }]) => {
    const where = `step "${step}", tensor "${tensor}"`
    if (!(buffer instanceof AddonBuffer)) throw new Error(`${where}: its buffer belongs to another runtime`)
    if (!(dtype in onnxElementType)) throw new Error(`${where}: unknown type ${dtype}`)
    if (!Number.isSafeInteger(byteOffset) || byteOffset < 0) throw new Error(`${where}: byte offset ${byteOffset}`)
    return {
      tensor,
      handle: buffer.handle,
      byteOffset,
      dtype: onnxElementType[dtype],
      shape: shape.map((dim) => {
        const symbol = typeof dim === 'string' ? dims.indexOf(dim) : -1
        if (typeof dim === 'string' && symbol < 0)
          throw new Error(`${where}: "${dim}" is not among the program's dimensions`)
        if (typeof dim === 'number' && (!Number.isSafeInteger(dim) || dim < 0))
          throw new Error(`${where}: dimension ${dim}`)
        return typeof dim === 'string' ? -1 - symbol : dim
      }),
    }
  })
}

class AddonProgram implements Program {
  readonly #native: Native
  readonly #handle: Handle
  readonly #dims: readonly string[]
  readonly #steps: number
  readonly #ended: () => void
  #end: Promise<void> | undefined

  constructor(native: Native, handle: Handle, dims: readonly string[], steps: number, ended: () => void) {
    this.#native = native
    this.#handle = handle
    this.#dims = dims
    this.#steps = steps
    this.#ended = ended
  }

  async run({ dims = {}, from = 0, to = this.#steps, signal }: RunOptions = {}): Promise<RunResult> {
    if (this.#end) throw new Error('the program was closed')
    signal?.throwIfAborted()
    const values = Float64Array.from(this.#dims, (name) => {
      const value = dims[name]
      if (value !== undefined && (!Number.isSafeInteger(value) || value < 0))
        throw new Error(`dimension "${name}": ${value}`)
      return value ?? -1
    })
    for (const name of Object.keys(dims))
      if (!this.#dims.includes(name))
        throw new Error(`"${name}" is not among the program's dimensions: ${this.#dims.join(', ')}`)
    const control = this.#native.createControl()
    const abort = () => this.#native.cancel(control)
    signal?.addEventListener('abort', abort, { once: true })
    try {
      return { stepMs: await this.#native.run(this.#handle, values, from, to, control) }
    } catch (error) {
      if ((error as { code?: string }).code === 'ESPALIER_CANCELLED') signal?.throwIfAborted()
      throw error
    } finally {
      signal?.removeEventListener('abort', abort)
    }
  }

  profile(): OpProfile[] {
    return this.#native.profile(this.#handle).sort((a, b) => b.milliseconds - a.milliseconds)
  }

  close(): void {
    void this.end()
  }

  end(): Promise<void> {
    this.#ended()
    this.#end ??= this.#native.close(this.#handle)
    return this.#end
  }
}
