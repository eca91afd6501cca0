// The runtime over stock onnxruntime-node, for lowered graphs: correct and slower. With addon.ts, the only door to
// onnxruntime-node. Serves the CUDA and WebGPU providers too (design §11).
import { closeSync, openSync, readFileSync, readSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { usableIsas } from './addon.js'
import { chooseThreads } from './native.js'
import type { StepShapes, StockBinding, StockReply, StockRequest, StockStep, StockWorkerData } from './stock-worker.js'
import {
  type Binding,
  bytesPerElement,
  type DeviceBuffer,
  type MemoryStatistics,
  type OpProfile,
  type Program,
  type ProgramDefinition,
  type RunOptions,
  type RunResult,
  type Runtime,
  type RuntimeInfo,
  type RuntimeOptions,
} from './types.js'

export function openStock(options: RuntimeOptions, reason: string): Runtime {
  const provider = options.provider ?? 'cpu'
  const threads = chooseThreads(options.threads)
  const entry = createRequire(import.meta.url).resolve('onnxruntime-node')
  const { version } = JSON.parse(readFileSync(join(dirname(dirname(entry)), 'package.json'), 'utf8')) as {
    version: string
  }
  return new StockRuntime({
    kernels: false,
    provider,
    isa: null,
    isas: usableIsas(),
    threads,
    ortVersion: version,
    reason,
  })
}

/** How long a thread that was asked to end may take. */
const END_MS = 30_000

/** The worker thread and the requests that it has not answered. */
class StockThread {
  readonly #worker: Worker
  readonly #waiting = new Map<
    number,
    { resolve: (result: Float64Array | null) => void; reject: (error: Error) => void }
  >()
  #next = 0
  #failure: Error | undefined

  constructor(data: StockWorkerData) {
    const isSource = import.meta.url.endsWith('.ts')
    const url = new URL(isSource ? './stock-worker.ts' : './stock-worker.js', import.meta.url)
    // From the sources (tests), jiti compiles what the thread imports.
    this.#worker = isSource
      ? new Worker(
          `import('jiti').then(({ createJiti }) => createJiti(${JSON.stringify(url.href)}).import(${JSON.stringify(url.href)}))`,
          { eval: true, workerData: data },
        )
      : new Worker(url, { workerData: data })
    this.#worker.unref()
    this.#worker.on('message', (reply: StockReply) => {
      const waiting = this.#waiting.get(reply.id)
      if (!waiting) return
      const { resolve, reject } = waiting
      this.#forget(reply.id)
      if ('error' in reply)
        reject(Object.assign(new Error(reply.error), reply.isCancelled ? { code: 'ESPALIER_CANCELLED' } : {}))
      else resolve(reply.result)
    })
    this.#worker.on('error', (error) =>
      this.#fail(new Error(`the onnxruntime-node thread failed: ${(error as Error).message}`)),
    )
    this.#worker.on('exit', () => this.#fail(new Error('the runtime was closed')))
  }

  send(request: StockRequest): Promise<Float64Array | null> {
    if (this.#failure) return Promise.reject(this.#failure)
    return new Promise((resolve, reject) => {
      const id = this.#next++
      if (this.#waiting.size === 0) this.#worker.ref()
      this.#waiting.set(id, { resolve, reject })
      this.#worker.postMessage({ id, request })
    })
  }

  /**
   * Lets the thread end by itself once it has answered everything: terminated inside the native binding, it could take
   * the process with it.
   */
  async end(): Promise<void> {
    if (this.#failure) return
    const exit = new Promise((resolve) => this.#worker.once('exit', resolve))
    this.#worker.ref()
    this.#worker.postMessage({ id: -1, request: { kind: 'end' } satisfies StockRequest })
    const patience = setTimeout(() => void this.#worker.terminate(), END_MS)
    await exit
    clearTimeout(patience)
  }

  #forget(id: number): void {
    this.#waiting.delete(id)
    if (this.#waiting.size === 0) this.#worker.unref()
  }

  #fail(error: Error): void {
    this.#failure ??= error
    for (const { reject } of this.#waiting.values()) reject(this.#failure)
    this.#waiting.clear()
  }
}

class StockRuntime implements Runtime {
  readonly info: RuntimeInfo
  readonly #thread: StockThread
  readonly #programs = new Set<StockProgram>()
  #nextProgram = 1
  #isClosed = false

  constructor(info: RuntimeInfo) {
    this.info = info
    this.#thread = new StockThread({ provider: info.provider, threads: info.threads })
  }

  allocate(byteLength: number): DeviceBuffer {
    this.#assertOpen()
    return new StockBuffer(this.#thread, byteLength)
  }

  async loadFile(path: string): Promise<DeviceBuffer> {
    this.#assertOpen()
    const status = statSync(path)
    if (!status.isFile()) throw new Error(`${path}: not a regular file`)
    return new StockBuffer(this.#thread, status.size, path)
  }

  async createProgram(definition: ProgramDefinition): Promise<Program> {
    this.#assertOpen()
    const steps = definition.steps.map((step): StockStep => {
      if (!definition.models[step.model]) throw new Error(`step "${step.name}": there is no model ${step.model}`)
      const inputs = stockBindings(definition.dims, step.name, 'input', step.inputs)
      const outputs = stockBindings(definition.dims, step.name, 'output', step.outputs)
      if (outputs.length === 0) throw new Error(`step "${step.name}": no output is bound`)
      return { model: step.model, name: step.name, inputs, outputs }
    })
    const id = this.#nextProgram++
    await Promise.all(
      definition.steps.flatMap((step) =>
        [...Object.values(step.inputs), ...Object.values(step.outputs)].map(({ buffer }) =>
          (buffer as StockBuffer).share(),
        ),
      ),
    )
    await this.#thread.send({ kind: 'program', program: id, models: definition.models.map((m) => m.bytes), steps })
    const program = new StockProgram(this.#thread, id, definition, () => this.#programs.delete(program))
    this.#programs.add(program)
    return program
  }

  async measureCeiling(): Promise<never> {
    throw new Error(`measuring the processor needs the native addon: ${this.info.reason}`)
  }

  async measureReadBandwidth(): Promise<never> {
    throw new Error(`measuring the memory needs the native addon: ${this.info.reason}`)
  }

  memory(): MemoryStatistics {
    return { live: 0, peakLive: 0, highWater: 0, scratch: 0 }
  }

  trim(): void {}

  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    await Promise.all([...this.#programs].map((program) => program.end()))
    await this.#thread.end()
  }

  #assertOpen(): void {
    if (this.#isClosed) throw new Error('the runtime was closed')
  }
}

let nextBufferId = 1

class StockBuffer implements DeviceBuffer {
  readonly id = nextBufferId++
  readonly byteLength: number
  readonly readOnly: boolean
  readonly #thread: StockThread
  readonly #path: string | undefined
  readonly #memory: SharedArrayBuffer
  #shared: Promise<unknown> | undefined
  isFreed = false

  constructor(thread: StockThread, byteLength: number, path?: string) {
    if (!Number.isSafeInteger(byteLength) || byteLength < 0)
      throw new Error(`byteLength must be a whole number, not ${byteLength}`)
    this.#thread = thread
    this.byteLength = byteLength
    this.#path = path
    this.readOnly = path !== undefined
    this.#memory = new SharedArrayBuffer(this.readOnly ? 0 : byteLength)
  }

  get bytes(): Uint8Array {
    if (this.readOnly) throw new Error('a loaded file is read-only memory: use read(byteOffset, byteLength) for a copy')
    if (this.isFreed) throw new Error('the buffer was freed')
    return new Uint8Array(this.#memory)
  }

  read(byteOffset: number, byteLength: number): Uint8Array {
    if (!(byteOffset >= 0 && byteLength >= 0 && byteOffset + byteLength <= this.byteLength))
      throw new Error(`${byteLength} bytes at offset ${byteOffset} are outside of a buffer of ${this.byteLength}`)
    if (this.#path === undefined) return this.bytes.slice(byteOffset, byteOffset + byteLength)
    if (this.isFreed) throw new Error('the buffer was freed')
    const file = openSync(this.#path, 'r')
    try {
      const copy = new Uint8Array(byteLength)
      if (readSync(file, copy, 0, byteLength, byteOffset) !== byteLength)
        throw new Error(`${this.#path}: shorter than it was`)
      return copy
    } finally {
      closeSync(file)
    }
  }

  free(): void {
    if (this.isFreed) return
    this.isFreed = true
    if (this.#shared) void this.#thread.send({ kind: 'free', buffer: this.id }).catch(() => {})
  }

  /** Makes the memory known to the thread, once; a file is read there then. */
  share(): Promise<unknown> {
    this.#shared ??= this.#thread.send(
      this.#path === undefined
        ? { kind: 'buffer', buffer: this.id, memory: this.#memory }
        : { kind: 'map', buffer: this.id, path: this.#path, byteLength: this.byteLength },
    )
    return this.#shared
  }
}

function stockBindings(
  dims: readonly string[],
  step: string,
  direction: 'input' | 'output',
  bindings: Readonly<Record<string, Binding>>,
): StockBinding[] {
  return Object.entries(bindings).map(([tensor, { buffer, byteOffset, dtype, shape }]) => {
    const where = `step "${step}", ${direction} "${tensor}"`
    if (!(buffer instanceof StockBuffer)) throw new Error(`${where}: its buffer belongs to another runtime`)
    if (!(dtype in bytesPerElement)) throw new Error(`${where}: unknown type ${dtype}`)
    if (dtype === 'bf16')
      throw new Error(`${where}: onnxruntime-node has no bf16 tensors; lower to f32 where there are no kernels`)
    if (!Number.isSafeInteger(byteOffset) || byteOffset < 0 || byteOffset % bytesPerElement[dtype] !== 0)
      throw new Error(`${where}: byte offset ${byteOffset} is not a multiple of the element size`)
    if (direction === 'output' && buffer.readOnly)
      throw new Error(`${where}: bound to a loaded file, which is read-only`)
    for (const dim of shape)
      if (typeof dim === 'string' && !dims.includes(dim))
        throw new Error(`${where}: "${dim}" is not among the program's dimensions`)
    return { tensor, buffer: buffer.id, byteOffset, dtype }
  })
}

class StockProgram implements Program {
  readonly #thread: StockThread
  readonly #id: number
  readonly #definition: ProgramDefinition
  readonly #ended: () => void
  #end: Promise<void> | undefined

  constructor(thread: StockThread, id: number, definition: ProgramDefinition, ended: () => void) {
    this.#thread = thread
    this.#id = id
    this.#definition = definition
    this.#ended = ended
  }

  async run({ dims = {}, from = 0, to = this.#definition.steps.length, signal }: RunOptions = {}): Promise<RunResult> {
    if (this.#end) throw new Error('the program was closed')
    signal?.throwIfAborted()
    const { steps, dims: names } = this.#definition
    for (const name of Object.keys(dims))
      if (!names.includes(name)) throw new Error(`"${name}" is not among the program's dimensions: ${names.join(', ')}`)
    if (!(Number.isInteger(from) && Number.isInteger(to) && from >= 0 && from <= to && to <= steps.length))
      throw new Error(`steps [${from}, ${to}) of a program that has ${steps.length}`)
    const shapes = steps.slice(from, to).map(
      (step): StepShapes => ({
        inputs: Object.entries(step.inputs).map(([tensor, b]) =>
          resolveShape(`step "${step.name}", input "${tensor}"`, b, dims),
        ),
        outputs: Object.entries(step.outputs).map(([tensor, b]) =>
          resolveShape(`step "${step.name}", output "${tensor}"`, b, dims),
        ),
      }),
    )
    const cancelled = new Int32Array(new SharedArrayBuffer(4))
    const abort = () => Atomics.store(cancelled, 0, 1)
    signal?.addEventListener('abort', abort, { once: true })
    try {
      const stepMs = await this.#thread.send({ kind: 'run', program: this.#id, from, to, shapes, cancelled })
      return { stepMs: stepMs! }
    } catch (error) {
      if ((error as { code?: string }).code === 'ESPALIER_CANCELLED') signal?.throwIfAborted()
      throw error
    } finally {
      signal?.removeEventListener('abort', abort)
    }
  }

  profile(): OpProfile[] {
    return []
  }

  close(): void {
    void this.end()
  }

  end(): Promise<void> {
    this.#ended()
    this.#end ??= this.#thread.send({ kind: 'close', program: this.#id }).then(
      () => {},
      () => {}, // the thread has ended: there is nothing left to release
    )
    return this.#end
  }
}

function resolveShape(
  where: string,
  { buffer, byteOffset, dtype, shape }: Binding,
  dims: Readonly<Record<string, number>>,
): number[] {
  const resolved = shape.map((dim) => {
    const value = typeof dim === 'string' ? dims[dim] : dim
    if (value === undefined) throw new Error(`${where}: dimension "${dim}" was not given`)
    if (!Number.isSafeInteger(value) || value < 0) throw new Error(`${where}: dimension ${dim} is ${value}`)
    return value
  })
  if ((buffer as StockBuffer).isFreed) throw new Error(`${where}: its buffer was freed`)
  const bytes = resolved.reduce((n, dim) => n * dim, bytesPerElement[dtype])
  if (byteOffset + bytes > buffer.byteLength)
    throw new Error(
      `${where}: shape [${resolved.join(', ')}] of ${dtype} needs ${bytes} bytes at offset ${byteOffset}, but the buffer has ${buffer.byteLength}`,
    )
  return resolved
}
