// Runs a graph through stock onnxruntime-node: the float64 oracle of kernels and gradients.
import * as ort from 'onnxruntime-node'
import { compile } from '../../src/compiler/compile.js'
import type { DType, Graph, Shape } from '../../src/compiler/graph.js'

export interface Tensor {
  readonly dtype: DType
  readonly shape: readonly number[]
  /** Real numbers; i64 too. */
  readonly data: ArrayLike<number>
}

const ortTypes = {
  f32: 'float32',
  f64: 'float64',
  i32: 'int32',
  i64: 'int64',
  u8: 'uint8',
  i8: 'int8',
  bool: 'bool',
  f16: 'float16',
  bf16: 'bfloat16',
} as const

function toOrt({ dtype, shape, data }: Tensor): ort.Tensor {
  const array = {
    f32: () => Float32Array.from(data),
    f64: () => Float64Array.from(data),
    i32: () => Int32Array.from(data),
    i64: () => BigInt64Array.from(Array.from(data, BigInt)),
    u8: () => Uint8Array.from(data),
    i8: () => Int8Array.from(data),
    bool: () => Uint8Array.from(data),
    f16: () => Uint16Array.from(data),
    bf16: () => Uint16Array.from(data),
  }[dtype]()
  return new ort.Tensor(ortTypes[dtype] as 'float32', array as Float32Array, shape as number[])
}

/** Every output and update of the graph, by name, for the given leaves. Dimensions come from the tensors. */
export async function runOracle(
  graph: Graph,
  feeds: Readonly<Record<string, Tensor>>,
): Promise<Record<string, Float64Array>> {
  const dims: Record<string, number> = {}
  const note = (shape: Shape, actual: readonly number[]) =>
    shape.forEach((d, i) => {
      if (typeof d === 'string') dims[d] = actual[i]!
    })
  for (const leaf of graph.leaves) {
    const given = feeds[leaf.leaf!.name]
    if (given) note(leaf.shape, given.shape)
  }
  const compiled = compile(graph, { cut: 'none', dims, recompute: 'none' })
  const step = compiled.steps[0]!
  const session = await ort.InferenceSession.create(compiled.models[0]!.bytes, {
    graphOptimizationLevel: 'basic',
    logSeverityLevel: 3,
  })
  const inputs = Object.fromEntries(
    Object.entries(step.inputs).map(([name, { place }]) => {
      if (place.kind !== 'leaf') throw new Error('an uncut graph reads leaves only')
      const given = feeds[place.name]
      if (!given) throw new Error(`no value for ${place.name}`)
      return [name, toOrt(given)]
    }),
  )
  const results = await session.run(inputs)
  await session.release()
  return Object.fromEntries(
    Object.entries(step.outputs).map(([name, { place }]) => [
      place.kind === 'workspace' ? name : place.name,
      Float64Array.from(results[name]!.data as unknown as ArrayLike<number>, Number),
    ]),
  )
}
