// The thread that runs lowered graphs through onnxruntime-node, whose `run` blocks whoever calls it. Buffers are shared
// memory; the binding cannot use it in place, so inputs are copied in and outputs copied back.
import { closeSync, openSync, readSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import type { InferenceSession, Tensor } from 'onnxruntime-node'
import type { DType, Provider } from './types.js'

/** A binding with everything resolved but symbolic dimensions, which each run sends. */
export interface StockBinding {
  tensor: string
  buffer: number
  byteOffset: number
  dtype: DType
}
export interface StockStep {
  model: number
  name: string
  inputs: StockBinding[]
  outputs: StockBinding[]
}
/** Shapes of one step's inputs and outputs, in the order of its bindings. */
export interface StepShapes {
  inputs: number[][]
  outputs: number[][]
}
export type StockRequest =
  | { kind: 'buffer'; buffer: number; memory: SharedArrayBuffer }
  | { kind: 'map'; buffer: number; path: string; byteLength: number }
  | { kind: 'free'; buffer: number }
  | { kind: 'program'; program: number; models: readonly Uint8Array[]; steps: StockStep[] }
  | { kind: 'run'; program: number; from: number; to: number; shapes: StepShapes[]; cancelled: Int32Array }
  | { kind: 'close'; program: number }
  | { kind: 'end' }
export type StockReply =
  | { id: number; result: Float64Array | null }
  | { id: number; error: string; isCancelled: boolean }
export interface StockWorkerData {
  provider: Provider
  threads: number
}

class CancelledError extends Error {}

type Elements = Float32Array | Float64Array | Uint16Array | BigInt64Array | Int32Array | Uint8Array | Int8Array
type ElementsConstructor = new (buffer: ArrayBufferLike, byteOffset: number, length: number) => Elements
const float16Array = (globalThis as { Float16Array?: ElementsConstructor }).Float16Array
const elements: Readonly<
  Record<Exclude<DType, 'bf16'>, { type: Tensor.Type; array: ElementsConstructor; bytes: number }>
> = {
  f32: { type: 'float32', array: Float32Array, bytes: 4 },
  f64: { type: 'float64', array: Float64Array, bytes: 8 },
  f16: { type: 'float16', array: float16Array ?? Uint16Array, bytes: 2 },
  i64: { type: 'int64', array: BigInt64Array, bytes: 8 },
  i32: { type: 'int32', array: Int32Array, bytes: 4 },
  u8: { type: 'uint8', array: Uint8Array, bytes: 1 },
  i8: { type: 'int8', array: Int8Array, bytes: 1 },
  bool: { type: 'bool', array: Uint8Array, bytes: 1 },
}

const port = parentPort!
const { provider, threads } = workerData as StockWorkerData
const ort = await import('onnxruntime-node')
ort.env.logLevel = 'fatal' // failures come back as messages
const buffers = new Map<number, { memory: ArrayBufferLike; isShared: boolean }>()
const programs = new Map<number, { sessions: InferenceSession[]; steps: StockStep[] }>()

function readFile(path: string, byteLength: number): ArrayBuffer {
  const memory = new ArrayBuffer(byteLength)
  const file = openSync(path, 'r')
  try {
    for (let done = 0; done < byteLength; ) {
      const n = readSync(file, new Uint8Array(memory, done, Math.min(byteLength - done, 1 << 30)))
      if (n === 0) throw new Error(`${path}: ended after ${done} of ${byteLength} bytes`)
      done += n
    }
  } finally {
    closeSync(file)
  }
  return memory
}

function feed(binding: StockBinding, shape: number[]): Tensor {
  const { type, array: View, bytes } = elements[binding.dtype as Exclude<DType, 'bf16'>]
  const { memory, isShared } = buffers.get(binding.buffer)!
  const length = shape.reduce((n, dim) => n * dim, 1)
  const data = isShared
    ? new View(memory.slice(binding.byteOffset, binding.byteOffset + length * bytes) as never, 0, length)
    : new View(memory, binding.byteOffset, length)
  // slice() of shared memory is shared again; the binding needs memory of its own.
  const own = isShared ? (data as unknown as { slice(): Elements }).slice() : data
  return new ort.Tensor(type, own as never, shape)
}

async function createSessions(models: readonly Uint8Array[], steps: StockStep[]): Promise<InferenceSession[]> {
  const sessions: InferenceSession[] = []
  for (const [m, bytes] of models.entries()) {
    try {
      sessions.push(
        await ort.InferenceSession.create(Uint8Array.from(bytes), {
          executionProviders: provider === 'cpu' ? ['cpu'] : [provider, 'cpu'],
          intraOpNumThreads: threads,
          interOpNumThreads: 1,
          executionMode: 'sequential',
          graphOptimizationLevel: 'basic',
          enableMemPattern: false,
          logSeverityLevel: 4,
        }),
      )
    } catch (error) {
      const user = steps.find((step) => step.model === m)
      throw new Error(`model ${m}${user ? ` (step "${user.name}")` : ''}: ${(error as Error).message}`)
    }
  }
  for (const step of steps) {
    const session = sessions[step.model]!
    const check = (direction: string, bindings: StockBinding[], known: readonly string[]) => {
      for (const { tensor } of bindings)
        if (!known.includes(tensor))
          throw new Error(`step "${step.name}", ${direction} "${tensor}": the model has no such ${direction}`)
    }
    check('input', step.inputs, session.inputNames)
    check('output', step.outputs, session.outputNames)
    for (const name of session.inputNames)
      if (!step.inputs.some((binding) => binding.tensor === name))
        throw new Error(`step "${step.name}", input "${name}": not bound`)
  }
  return sessions
}

async function runStep(session: InferenceSession, step: StockStep, shapes: StepShapes): Promise<void> {
  const feeds = Object.fromEntries(step.inputs.map((binding, i) => [binding.tensor, feed(binding, shapes.inputs[i]!)]))
  const results = await session
    .run(
      feeds,
      step.outputs.map((binding) => binding.tensor),
    )
    .catch((error: Error) => {
      throw new Error(`step "${step.name}": ${error.message}`)
    })
  for (const [i, binding] of step.outputs.entries()) {
    const result = results[binding.tensor]!
    const shape = shapes.outputs[i]!
    if (result.dims.length !== shape.length || result.dims.some((dim, d) => dim !== shape[d]))
      throw new Error(
        `step "${step.name}", output "${binding.tensor}": bound with shape [${shape}], computed [${result.dims}]`,
      )
    const data = (await result.getData()) as unknown as Elements
    const { memory } = buffers.get(binding.buffer)!
    new Uint8Array(memory, binding.byteOffset, data.byteLength).set(
      new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
    )
    result.dispose()
  }
}

async function closeProgram(id: number): Promise<void> {
  for (const session of programs.get(id)?.sessions ?? []) await session.release()
  programs.delete(id)
}

async function answer(request: StockRequest): Promise<Float64Array | null> {
  switch (request.kind) {
    case 'buffer':
      buffers.set(request.buffer, { memory: request.memory, isShared: true })
      return null
    case 'map':
      buffers.set(request.buffer, { memory: readFile(request.path, request.byteLength), isShared: false })
      return null
    case 'free':
      buffers.delete(request.buffer)
      return null
    case 'program':
      programs.set(request.program, {
        sessions: await createSessions(request.models, request.steps),
        steps: request.steps,
      })
      return null
    case 'run': {
      const { sessions, steps } = programs.get(request.program)!
      const stepMs = new Float64Array(request.to - request.from)
      for (let s = request.from; s < request.to; s++) {
        if (Atomics.load(request.cancelled, 0)) throw new CancelledError('cancelled')
        const start = performance.now()
        const step = steps[s]!
        await runStep(sessions[step.model]!, step, request.shapes[s - request.from]!)
        stepMs[s - request.from] = performance.now() - start
      }
      return stepMs
    }
    case 'close':
      await closeProgram(request.program)
      return null
    case 'end':
      for (const program of [...programs.keys()]) await closeProgram(program)
      port.close() // nothing keeps the thread then
      return null
  }
}

let queue: Promise<void> = Promise.resolve()
port.on('message', ({ id, request }: { id: number; request: StockRequest }) => {
  queue = queue.then(async () => {
    try {
      const result = await answer(request)
      if (request.kind !== 'end') port.postMessage({ id, result } satisfies StockReply)
    } catch (error) {
      const isCancelled = error instanceof CancelledError
      port.postMessage({ id, error: (error as Error).message, isCancelled } satisfies StockReply)
    }
  })
})
