// Time of the kernels at the sizes of the reference base, as shares of a ceiling probed between the runs.
import { backward } from '../../src/compiler/autodiff.js'
import { compile } from '../../src/compiler/compile.js'
import { Graph, type Value } from '../../src/compiler/graph.js'
import { attention } from '../../src/compiler/ops/attention.js'
import { mul, neg } from '../../src/compiler/ops/elementwise.js'
import { linearLogProb } from '../../src/compiler/ops/linear-log-prob.js'
import { rmsNorm } from '../../src/compiler/ops/norms.js'
import { quantLinear } from '../../src/compiler/ops/quant-linear.js'
import { reduceSum } from '../../src/compiler/ops/reduce.js'
import { rotary, swiGlu } from '../../src/compiler/ops/rotary.js'
import { bindProgram } from '../../src/runtime/bind.js'
import type { Runtime } from '../../src/runtime/types.js'
import { CaseBuilder } from './case.js'

interface PerfCase {
  readonly op: string
  readonly name: string
  /** How often it runs in one layer of the base. */
  readonly count: number
  /** Multiply-adds counted twice. */
  readonly forwardFlops: number
  readonly backwardFlops: number
  build(c: CaseBuilder): { output: Value; wrt: string[] }
}

const ROWS = 512
const RANK = 16

function linear(name: string, k: number, out: number): PerfCase {
  const bOffset = RANK * k
  const product = 2 * ROWS * k * out
  const adapter = 2 * ROWS * RANK * (k + out)
  return {
    op: 'QuantLinear',
    name: `${name} ${ROWS}×${k}×${out}`,
    count: 1,
    forwardFlops: product + adapter,
    backwardFlops: product + 2 * adapter,
    build(c) {
      const slot = {
        slice: c.real('adapter', [bOffset + out * RANK], 0.05, 0, 'parameter'),
        rank: RANK,
        scaling: 2,
        bOffset,
      }
      return {
        output: quantLinear(c.activation('x', ['N', k]), c.weight('w', 'int4', 32, out, k), { slot }),
        wrt: ['x', 'adapter'],
      }
    },
  }
}

const TOKENS = 1024
const perfCases: PerfCase[] = [
  linear('q', 576, 576),
  linear('k', 576, 192),
  linear('v', 576, 192),
  linear('o', 576, 576),
  linear('gate', 576, 1536),
  linear('up', 576, 1536),
  linear('down', 1536, 576),
  {
    op: 'Attention',
    name: `${TOKENS} tokens, 9/3 heads of 64`,
    count: 1,
    forwardFlops: 2 * TOKENS * TOKENS * 576,
    backwardFlops: 4 * TOKENS * TOKENS * 576,
    build: (c) => ({
      output: attention(
        c.activation('q', ['N', 576]),
        c.activation('k', ['N', 192]),
        c.activation('v', ['N', 192]),
        c.given('cuSeqlens', 'i32', ['S'], [0, TOKENS]),
        { numHeads: 9, numKeyValueHeads: 3, headDim: 64 },
      ),
      wrt: ['q', 'k', 'v'],
    }),
  },
  {
    op: 'LinearLogProb',
    name: `${TOKENS} rows, vocabulary 49152, int8`,
    count: 1,
    forwardFlops: 2 * TOKENS * 576 * 49152,
    backwardFlops: 2 * TOKENS * 576 * 49152,
    build: (c) => {
      const index = Array.from({ length: TOKENS }, (_, i) => i)
      const { logps } = linearLogProb(
        c.activation('h', ['N', 576]),
        c.weight('w', 'int8', 32, 49152, 576),
        c.given('labels', 'i32', ['M'], index),
        c.given('lossRows', 'i32', ['M'], index),
      )
      return { output: neg(reduceSum(mul(logps, c.real('weights', ['M'])), [0], true)), wrt: ['h'] }
    },
  },
  {
    op: 'RmsNorm',
    name: `${TOKENS}×576`,
    count: 2,
    forwardFlops: 4 * TOKENS * 576,
    backwardFlops: 8 * TOKENS * 576,
    build: (c) => ({ output: rmsNorm(c.activation('x', ['N', 576]), c.real('weight', [576]), 1e-5), wrt: ['x'] }),
  },
  {
    op: 'Rotary',
    name: `${TOKENS}×576`,
    count: 1,
    forwardFlops: 4 * TOKENS * 576,
    backwardFlops: 4 * TOKENS * 576,
    build: (c) => ({
      output: rotary(c.activation('x', ['N', 576]), c.real('cos', ['N', 32]), c.real('sin', ['N', 32]), 64),
      wrt: ['x'],
    }),
  },
  {
    op: 'SwiGlu',
    name: `${TOKENS}×1536`,
    count: 1,
    forwardFlops: 8 * TOKENS * 1536,
    backwardFlops: 16 * TOKENS * 1536,
    build: (c) => ({
      output: swiGlu(c.activation('gate', ['N', 1536]), c.activation('up', ['N', 1536])),
      wrt: ['gate', 'up'],
    }),
  },
]

export interface PerfRow {
  readonly op: string
  readonly name: string
  readonly forwardMs: number
  readonly backwardMs: number
  /** Shares of the ceiling. */
  readonly forward: number
  readonly backward: number
  readonly text: string
}

const median = (values: number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!

/** Compiles forward alone and forward with backward as two steps, runs them alternately with the probe. */
async function measure(runtime: Runtime, perf: PerfCase) {
  const n = perf.op === 'QuantLinear' ? ROWS : TOKENS
  const dims = { N: n, M: n, S: 2 }
  const trace = (withGradient: boolean) => {
    const graph = new Graph({ kernels: true, activationType: 'bf16', strict: false })
    const builder = new CaseBuilder(graph, dims, { seed: 3, isNarrow: true })
    const { output, wrt } = perf.build(builder)
    if (withGradient) {
      // Gradients alone: the forward's own values are read from memory as the backward of a block does.
      const seed =
        output.shape.length === 2 ? builder.activation('seed', output.shape) : builder.real('seed', output.shape)
      const leaves = graph.leaves.filter((v) => wrt.includes(v.leaf!.name))
      for (const [leaf, d] of backward(graph, new Map([[output, seed]]), leaves, { accumulate: true }))
        if (leaf.leaf!.role !== 'parameter') graph.output(`d.${leaf.leaf!.name}`, d)
    } else graph.output('y', output)
    return { graph, feeds: builder.feeds }
  }
  const programs = []
  for (const withGradient of [false, true]) {
    const { graph, feeds } = trace(withGradient)
    const compiled = compile(graph, { cut: 'none', dims })
    const program = await bindProgram(runtime, compiled, { leaf: () => null })
    for (const { name, dtype } of compiled.leaves) {
      const data = feeds[name]?.data
      const { bytes } = program.memoryOf(name)
      if (!data) continue
      if (dtype === 'f32') new Float32Array(bytes.buffer, bytes.byteOffset, data.length).set(data)
      else if (dtype === 'i32') new Int32Array(bytes.buffer, bytes.byteOffset, data.length).set(data)
      else if (dtype === 'bf16') {
        const out = new Uint16Array(bytes.buffer, bytes.byteOffset, data.length)
        const bits = new Uint32Array(Float32Array.from(data).buffer)
        for (let i = 0; i < out.length; i++) out[i] = bits[i]! >>> 16
      } else if (dtype === 'f16') new Uint16Array(bytes.buffer, bytes.byteOffset, data.length).set(data)
      else new Uint8Array(bytes.buffer, bytes.byteOffset, data.length).set(data)
    }
    programs.push(program)
  }
  const [forward, both] = programs as [(typeof programs)[0], (typeof programs)[0]]
  const times = { forward: [] as number[], both: [] as number[], ceiling: [] as number[] }
  const timed = async (program: typeof forward) => {
    const { stepMs } = await program.run({ dims })
    return stepMs[0]!
  }
  const runsPerProbe = 6
  const rounds = perf.op === 'LinearLogProb' ? 5 : 15
  for (let i = 0; i < 3; i++) await Promise.all([timed(forward), timed(both)])
  for (let i = 0; i < rounds; i++) {
    times.ceiling.push((await runtime.measureCeiling(40)).gflops)
    await timed(forward) // the probe has put the pool to sleep; a step never finds it so
    for (let j = 0; j < runsPerProbe; j++) {
      times.forward.push(await timed(forward))
      times.both.push(await timed(both))
    }
  }
  for (const program of programs) program.close()
  const hasForward = perf.op === 'Attention' // its gradient reads the forward's results, which run in the same graph
  const forwardMs = median(times.forward)
  const backwardMs = hasForward ? median(times.both.map((t, i) => t - times.forward[i]!)) : median(times.both)
  return { forwardMs, backwardMs, ceiling: median(times.ceiling), isFused: perf.op === 'LinearLogProb' }
}

/** Rows per case and, time-weighted over all of them, the shares of the ceiling. */
export async function measureCases(runtime: Runtime, op: string | undefined) {
  const { kind } = await runtime.measureCeiling(50)
  const rows: PerfRow[] = []
  const total = { forwardMs: 0, backwardMs: 0, forwardShare: 0, backwardShare: 0 }
  const ceilings: number[] = []
  for (const perf of perfCases.filter((c) => !op || c.op === op)) {
    const { forwardMs, backwardMs, ceiling, isFused } = await measure(runtime, perf)
    ceilings.push(ceiling)
    const share = (flops: number, ms: number) => flops / (ms * 1e6) / ceiling
    const forward = share(perf.forwardFlops, forwardMs)
    const backwardFlops = perf.backwardFlops + (isFused ? perf.forwardFlops : 0)
    const back = share(backwardFlops, backwardMs)
    total.forwardMs += forwardMs
    total.backwardMs += backwardMs
    total.forwardShare += forward * forwardMs
    total.backwardShare += back * backwardMs
    const percent = (x: number) => `${(100 * x).toFixed(1).padStart(5)} %`
    rows.push({
      op: perf.op,
      name: perf.name,
      forwardMs,
      backwardMs,
      forward,
      backward: back,
      text: `${perf.op.padEnd(14)} ${perf.name.padEnd(36)} forward ${forwardMs.toFixed(2).padStart(8)} ms ${percent(forward)}   ${isFused ? 'both   ' : 'backward'} ${backwardMs.toFixed(2).padStart(8)} ms ${percent(back)}`,
    })
  }
  return {
    forward: total.forwardShare / total.forwardMs,
    backward: total.backwardShare / total.backwardMs,
    ceiling: kind,
    ceilingGflops: median(ceilings),
    isa: runtime.info.isa,
    threads: runtime.info.threads,
    rows,
  }
}
