// Runs a small graph once: lowered to standard ops in float64 through ONNX Runtime (the oracle form of an op), or
// with our kernels in fp32 through the addon.
import * as ort from 'onnxruntime-node'
import { compile } from '../../src/compiler/compile.js'
import { Graph } from '../../src/compiler/graph.js'
import { bytesPerElement, type DType, type Runtime } from '../../src/runtime/types.js'

export type Target = 'lowered' | 'kernels'
export interface Run {
  /** Leaf name → its values, of the leaf's type. */
  inputs: Record<string, readonly number[]>
  dims?: Record<string, number>
  target: Target
  /** Needed for `kernels`. */
  runtime?: Runtime
  build(graph: Graph): void
}

const arrays = {
  f32: Float32Array,
  f64: Float64Array,
  i32: Int32Array,
  u8: Uint8Array,
  i8: Int8Array,
} as const
const ortNames: Partial<Record<DType, ort.Tensor.Type>> = {
  f32: 'float32',
  f64: 'float64',
  i32: 'int32',
  i64: 'int64',
  u8: 'uint8',
  i8: 'int8',
}

function pack(dtype: DType, values: readonly number[]) {
  if (dtype === 'i64') return BigInt64Array.from(values, BigInt)
  const Typed = arrays[dtype as keyof typeof arrays]
  if (!Typed) throw new Error(`run-graph: no values of type ${dtype}`)
  return Typed.from(values)
}

/** → output name → values. */
export async function runGraph({ inputs, dims = {}, target, runtime, build }: Run): Promise<Record<string, number[]>> {
  const graph = new Graph({
    kernels: target === 'kernels',
    floatType: target === 'lowered' ? 'f64' : 'f32',
    strict: true,
  })
  build(graph)
  const compiled = compile(graph, { cut: 'none', dims, recompute: 'none' })
  const step = compiled.steps[0]!
  const model = compiled.models[step.model]!
  const size = (shape: readonly (number | string)[]) => shape.map((d) => (typeof d === 'string' ? dims[d]! : d))
  const given = (name: string, dtype: DType) => {
    const values = inputs[name]
    if (!values) throw new Error(`run-graph: no values for ${name}`)
    return pack(dtype, values)
  }

  if (target === 'lowered') {
    const session = await ort.InferenceSession.create(model.bytes, {
      graphOptimizationLevel: 'disabled',
      logSeverityLevel: 3,
    })
    const feeds: Record<string, ort.Tensor> = {}
    for (const [key, { place, dtype, shape }] of Object.entries(step.inputs)) {
      if (place.kind !== 'leaf') continue
      feeds[key] = new ort.Tensor(ortNames[dtype]!, given(place.name, dtype) as Float32Array, size(shape))
    }
    const results = await session.run(feeds)
    const out: Record<string, number[]> = {}
    for (const [key, { place }] of Object.entries(step.outputs)) {
      if (place.kind !== 'workspace') out[place.name] = Array.from(results[key]!.data as Float64Array, Number)
    }
    await session.release()
    return out
  }

  const buffers: Record<string, ReturnType<Runtime['allocate']>> = {}
  const bind = (entries: typeof step.inputs) =>
    Object.fromEntries(
      Object.entries(entries).map(([key, { place, dtype, shape }]) => {
        if (place.kind === 'workspace') throw new Error('run-graph: one segment has no workspace values')
        const byteLength = Math.max(64, size(shape).reduce((a, b) => a * b, 1) * bytesPerElement[dtype])
        const buffer = buffers[place.name] ?? runtime!.allocate(byteLength)
        buffers[place.name] = buffer
        return [key, { buffer, byteOffset: 0, dtype, shape }]
      }),
    )
  const bound = { model: 0, name: 'all', inputs: bind(step.inputs), outputs: bind(step.outputs) }
  for (const { place, dtype } of Object.values(step.inputs)) {
    if (place.kind !== 'leaf') continue
    const values = given(place.name, dtype)
    buffers[place.name]!.bytes.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength))
  }
  const program = await runtime!.createProgram({
    models: [{ bytes: model.bytes }],
    dims: Object.keys(dims),
    steps: [bound],
  })
  await program.run({ dims })
  const out: Record<string, number[]> = {}
  for (const { place, dtype, shape } of Object.values(step.outputs)) {
    if (place.kind === 'workspace') continue
    const count = size(shape).reduce((a, b) => a * b, 1)
    const bytes = buffers[place.name]!.read(0, count * bytesPerElement[dtype])
    const Typed = arrays[dtype as keyof typeof arrays]
    out[place.name] = Array.from(new Typed(bytes.slice().buffer))
  }
  program.close()
  for (const buffer of Object.values(buffers)) buffer.free()
  return out
}
