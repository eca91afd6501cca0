// Runs cases: kernels against the float64 lowering, forward and backward, and the lowering's gradients against central
// differences.
import { backward } from '../../src/compiler/autodiff.js'
import { compile } from '../../src/compiler/compile.js'
import { type DType, Graph, type GraphOptions, type Value } from '../../src/compiler/graph.js'
import { mul } from '../../src/compiler/ops/elementwise.js'
import { scalar } from '../../src/compiler/ops/tensor.js'
import { type BoundProgram, bindProgram } from '../../src/runtime/bind.js'
import type { Runtime } from '../../src/runtime/types.js'
import { bf16Bits, bf16Value, CaseBuilder, narrowToBf16, type OpCase, randomSource } from './case.js'
import { runOracle, type Tensor } from './oracle.js'

export interface TracedCase {
  readonly graph: Graph
  readonly feeds: Record<string, Tensor>
  readonly outputTypes: ReadonlyMap<string, DType>
}

/** The case's graph with its gradients: outputs by name, `d.<leaf>` for each gradient. */
export function traceCase(opCase: OpCase, options: GraphOptions & { isNarrow: boolean }): TracedCase {
  const graph = new Graph(options)
  const builder = new CaseBuilder(graph, opCase.dims, { seed: 7, isNarrow: options.isNarrow })
  const outputs = opCase.build(builder)
  for (const [name, value] of Object.entries(outputs)) graph.output(name, value)
  const seeds = new Map<Value, Value>()
  for (const name of opCase.through ?? []) {
    const y = outputs[name]!
    const seed =
      options.kernels && y.dtype === 'bf16'
        ? builder.activation(`seed.${name}`, y.shape)
        : builder.real(`seed.${name}`, y.shape)
    // A bf16 gradient sees rounded numbers; the oracle must see the same.
    if (options.isNarrow && !options.kernels && isActivation(opCase, name)) {
      const given = builder.feeds[`seed.${name}`]!
      builder.feeds[`seed.${name}`] = { ...given, data: Array.from(given.data, narrowToBf16) }
    }
    seeds.set(y, seed)
  }
  const leaves = graph.leaves.filter((v) => opCase.wrt?.includes(v.leaf!.name))
  if (seeds.size > 0)
    for (const [leaf, d] of backward(graph, seeds, leaves, { accumulate: options.kernels })) {
      const name = leaf.leaf!.name
      if (options.kernels && leaf.leaf!.role === 'parameter') {
        const given = builder.feeds[name]!
        builder.feeds[`grad.${name}`] = { ...given, data: Array.from({ length: given.data.length }, () => 0) }
        // An incoming gradient that passes unchanged is a leaf; an output must be computed.
      } else graph.output(`d.${name}`, d.leaf ? mul(d, scalar(graph, 1, d.dtype)) : d)
    }
  return { graph, feeds: builder.feeds, outputTypes: new Map([...graph.outputs].map(([n, v]) => [n, v.dtype])) }
}

function isActivation(opCase: OpCase, output: string): boolean {
  const graph = new Graph({ kernels: true, activationType: 'bf16' })
  const outputs = opCase.build(new CaseBuilder(graph, opCase.dims, { seed: 7, isNarrow: true }))
  return outputs[output]!.dtype === 'bf16'
}

function write(bytes: Uint8Array, dtype: DType, data: ArrayLike<number>): void {
  const { buffer, byteOffset } = bytes
  const n = data.length
  if (dtype === 'f32') new Float32Array(buffer, byteOffset, n).set(data)
  else if (dtype === 'i32') new Int32Array(buffer, byteOffset, n).set(data)
  else if (dtype === 'i64') new BigInt64Array(buffer, byteOffset, n).set(Array.from(data, BigInt))
  else if (dtype === 'u8') new Uint8Array(buffer, byteOffset, n).set(data)
  else if (dtype === 'i8') new Int8Array(buffer, byteOffset, n).set(data)
  else if (dtype === 'f16') new Uint16Array(buffer, byteOffset, n).set(data)
  else if (dtype === 'bf16') {
    const out = new Uint16Array(buffer, byteOffset, n)
    for (let i = 0; i < n; i++) out[i] = bf16Bits(data[i]!)
  } else throw new Error(`a test cannot write ${dtype}`)
}

function readBack(bytes: Uint8Array, dtype: DType, n: number): Float64Array {
  const { buffer, byteOffset } = bytes
  if (dtype === 'f32') return Float64Array.from(new Float32Array(buffer, byteOffset, n))
  if (dtype === 'bf16') return Float64Array.from(new Uint16Array(buffer, byteOffset, n), bf16Value)
  if (dtype === 'i32') return Float64Array.from(new Int32Array(buffer, byteOffset, n))
  throw new Error(`a test cannot read ${dtype}`)
}

/** The case compiled and bound for the kernels, its inputs filled. */
export async function bindCase(
  runtime: Runtime,
  opCase: OpCase,
  traced: TracedCase,
): Promise<{
  program: BoundProgram
  run(): Promise<void>
  read(name: string, n: number): Float64Array
  opTypes: string[]
}> {
  const compiled = compile(traced.graph, { cut: 'none', dims: opCase.dims, recompute: 'none' })
  const program = await bindProgram(runtime, compiled, { leaf: () => null })
  const types = new Map(compiled.leaves.map((l) => [l.name, l.dtype]))
  const weights = new Set(compiled.leaves.filter((l) => l.role === 'weight').map((l) => l.name))
  for (const { name } of compiled.leaves) {
    const given = traced.feeds[name]
    if (!given) throw new Error(`${opCase.op} ${opCase.name}: no data for ${name}`)
    const dtype = types.get(name)!
    const memory = program.memoryOf(name).bytes
    // Weights hold bits already.
    if (weights.has(name) && dtype === 'bf16')
      new Uint16Array(memory.buffer, memory.byteOffset, given.data.length).set(given.data)
    else write(memory, dtype, given.data)
  }
  return {
    program,
    run: async () => void (await program.run({ dims: opCase.dims })),
    read: (name, n) => readBack(program.memoryOf(name).bytes, traced.outputTypes.get(name) ?? types.get(name)!, n),
    opTypes: compiled.models[0]!.text.match(/= (\w+)\(/g)?.map((m) => m.slice(2, -1)) ?? [],
  }
}

export interface Comparison {
  readonly value: string
  /** Largest difference over the largest reference entry. */
  readonly error: number
  readonly limit: number
}

/** Kernels against the float64 oracle, for every output and gradient; `expected` spares computing the oracle again. */
export async function compareCase(
  runtime: Runtime,
  opCase: OpCase,
  mode: 'strict' | 'fast',
  expected?: Record<string, Float64Array>,
): Promise<Comparison[]> {
  const isNarrow = mode === 'fast'
  const oracle = expected ?? (await oracleOf(opCase, mode))
  const traced = traceCase(opCase, {
    kernels: true,
    activationType: isNarrow ? 'bf16' : 'f32',
    strict: !isNarrow,
    isNarrow,
  })
  const bound = await bindCase(runtime, opCase, traced)
  try {
    await bound.run()
    const limit = isNarrow ? (opCase.fastTolerance ?? 2e-2) : (opCase.tolerance ?? 2e-6)
    return Object.entries(oracle).map(([value, reference]) => {
      const parameter =
        value.startsWith('d.') && traced.feeds[`grad.${value.slice(2)}`] ? `grad.${value.slice(2)}` : value
      const actual = bound.read(parameter, reference.length)
      // A gradient that is zero by nature is compared absolutely.
      const top = reference.reduce((m, x) => Math.max(m, Math.abs(x)), 0.1)
      const error = reference.reduce(
        (m, x, i) => Math.max(m, Number.isNaN(actual[i]!) ? Number.POSITIVE_INFINITY : Math.abs(x - actual[i]!)),
        0,
      )
      return { value, error: error / top, limit }
    })
  } finally {
    bound.program.close()
  }
}

/** Every output and gradient in float64, from the inputs that the mode sees. */
export async function oracleOf(opCase: OpCase, mode: 'strict' | 'fast'): Promise<Record<string, Float64Array>> {
  const { graph, feeds } = traceCase(opCase, { kernels: false, floatType: 'f64', isNarrow: mode === 'fast' })
  return runOracle(graph, feeds)
}

/** The lowering's gradients against central differences in float64, at `samples` entries of each leaf. */
export async function checkGradients(opCase: OpCase, samples = 4): Promise<Comparison[]> {
  if (!opCase.wrt || !opCase.through) return []
  const analytic = await oracleOf(opCase, 'strict')
  const random = randomSource(11)
  const forward = async (change: { leaf: string; index: number; by: number }): Promise<number> => {
    const graph = new Graph({ kernels: false, floatType: 'f64' })
    const builder = new CaseBuilder(graph, opCase.dims, { seed: 7, isNarrow: false })
    const outputs = opCase.build(builder)
    for (const name of opCase.through!) graph.output(name, outputs[name]!)
    const seeds = opCase.through!.map((name) => {
      builder.real(`seed.${name}`, outputs[name]!.shape)
      return builder.feeds[`seed.${name}`]!.data
    })
    const given = builder.feeds[change.leaf]!
    const data = Array.from(given.data)
    data[change.index]! += change.by
    builder.feeds[change.leaf] = { ...given, data }
    const result = await runOracle(graph, builder.feeds)
    return opCase.through!.reduce(
      (sum, name, k) => sum + result[name]!.reduce((a, y, i) => a + y * seeds[k]![i]!, 0),
      0,
    )
  }
  const checks: Comparison[] = []
  const h = 1e-5
  for (const leaf of opCase.wrt) {
    const gradient = analytic[`d.${leaf}`]!
    const top = gradient.reduce((m, x) => Math.max(m, Math.abs(x)), 1e-30)
    for (let s = 0; s < samples; s++) {
      const index = Math.floor(random() * gradient.length)
      const slope = ((await forward({ leaf, index, by: h })) - (await forward({ leaf, index, by: -h }))) / (2 * h)
      checks.push({ value: `d.${leaf}[${index}]`, error: Math.abs(slope - gradient[index]!) / top, limit: 1e-6 })
    }
  }
  return checks
}
