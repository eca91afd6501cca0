import type { Value } from '../../../src/compiler/graph.js'
import { rmsNorm } from '../../../src/compiler/ops/norms.js'
import { floatBits, quantLinear, rowNorms } from '../../../src/compiler/ops/quant-linear.js'
import { swiGlu } from '../../../src/compiler/ops/rotary.js'
import type { WeightFormat } from '../../../src/compiler/ops/weight.js'
import type { CaseBuilder, OpCase } from '../case.js'

/** K, Nout, rank: odd row counts and sizes off every tile. */
const sizes = [
  { n: 5, k: 64, out: 96, rank: 4 },
  { n: 33, k: 192, out: 72, rank: 8 },
  { n: 130, k: 576, out: 192, rank: 16 },
]

const formats: [WeightFormat, number][] = [
  ['int4', 32],
  ['int4', 64],
  ['int4sym', 32],
  ['int4sym', 64],
  ['int8', 32],
  ['nf4', 64],
  ['f32', 32],
  ['bf16', 32],
]

function linear(
  format: WeightFormat,
  block: number,
  { n, k, out, rank }: (typeof sizes)[number],
  extra: 'plain' | 'adapter' | 'all',
): OpCase {
  const bOffset = Math.ceil((rank * k) / 16) * 16
  const hasAdapter = extra !== 'plain'
  return {
    op: 'QuantLinear',
    name: `${format} block ${block}, ${n}×${k}×${out}, ${extra}`,
    dims: { N: n },
    wrt: ['x', ...(hasAdapter ? ['adapter'] : []), ...(extra === 'all' ? ['residual'] : [])],
    through: ['y'],
    build(c) {
      const x = c.activation('x', ['N', k])
      const weight = c.weight('w', format, block, out, k)
      const slot = hasAdapter
        ? { slice: c.real('adapter', [bOffset + out * rank], 0.1, 0, 'parameter'), rank, scaling: 2, bOffset }
        : null
      const bias = extra === 'all' ? c.real('bias', [out]) : null
      const residual = extra === 'all' ? c.real('residual', ['N', out]) : null
      return { y: quantLinear(x, weight, { slot, bias, residual }) }
    },
    tolerance: 5e-6,
  }
}

export const quantLinearCases: OpCase[] = [
  ...formats.flatMap(([format, block]) => sizes.map((size) => linear(format, block, size, 'adapter'))),
  linear('int4', 32, sizes[1]!, 'plain'),
  linear('int4', 32, sizes[1]!, 'all'),
  linear('int4', 32, { n: 1, k: 64, out: 64, rank: 1 }, 'adapter'),
  {
    op: 'QuantLinear',
    name: 'rows that leave the adapter out',
    dims: { N: 9 },
    build(c) {
      const rowSlot = c.given(
        'rowSlot',
        'i32',
        ['N'],
        Array.from({ length: 9 }, (_, i) => (i % 3 ? 0 : -1)),
      )
      const slot = {
        slice: c.real('adapter', [4 * 64 + 96 * 4], 0.1, 0, 'parameter'),
        rank: 4,
        scaling: 2,
        bOffset: 256,
      }
      return { y: quantLinear(c.activation('x', ['N', 64]), c.weight('w', 'int4', 32, 96, 64), { slot, rowSlot }) }
    },
    tolerance: 5e-6,
  },
]

export const rowNormCases: OpCase[] = formats.map(([format, block]) => ({
  op: 'QuantLinearRowNorms',
  name: `${format} block ${block}`,
  dims: {},
  build(c) {
    const slot = {
      slice: c.real('adapter', [8 * 192 + 72 * 8], 0.1, 0, 'parameter'),
      rank: 8,
      scaling: 0.5,
      bOffset: 8 * 192,
    }
    return { norms: rowNorms(c.weight('w', format, block, 72, 192), slot) }
  },
}))

/** What makes a linear's x; the compiler lets linears of few rows do it themselves. */
type Before = 'nothing' | 'a norm' | 'a gating'

function prepared(c: CaseBuilder, before: Before, k: number): Value {
  if (before === 'a norm') return rmsNorm(c.real('x', ['N', k], 2), c.real('norm', [k], 0.2, 1), 1e-5)
  const x = c.activation('x', ['N', k])
  return before === 'nothing' ? x : swiGlu(x, c.activation('up', ['N', k]))
}

/** Rows of a batch that serves: two adapters (one with DoRA's factor), an empty slot, and the base. */
function served(
  format: WeightFormat,
  block: number,
  n: number,
  k: number,
  out: number,
  role: 'prefill' | 'decode',
  before: Before = 'nothing',
): OpCase {
  const ranks = [4, 0, 16]
  const maxRank = Math.max(...ranks)
  const sizes = ranks.map((rank) => Math.ceil((rank * (k + out) + out) / 16) * 16)
  const floats = sizes.reduce((a, b) => a + b, 0)
  const table = ranks.flatMap((rank, slot) => {
    const start = sizes.slice(0, slot).reduce((a, b) => a + b, 0)
    const factor = slot === 2 ? start + rank * (k + out) : 0
    return [start, start + rank * k, rank, floatBits(0.5 + slot), factor, 0, 0, 0]
  })
  const slotOf = (row: number) => (role === 'prefill' ? 2 : [0, -1, 2, 1][row % 4]!)
  return {
    op: 'QuantLinear',
    name: `${role}, ${format} block ${block}, ${n}×${k}×${out}, after ${before}`,
    dims: { N: n },
    build(c) {
      const slots = {
        arena: c.real('arena', [floats], 0.1, 0.02, 'parameter'),
        table: c.given('table', 'i64', [ranks.length, 8], table),
        rowSlot: c.given(
          'rowSlot',
          'i32',
          ['N'],
          Array.from({ length: n }, (_, i) => slotOf(i)),
        ),
        maxRank,
      }
      const residual = c.real('residual', ['N', out])
      const bias = c.real('bias', [out])
      return {
        y: quantLinear(prepared(c, before, k), c.weight('w', format, block, out, k), {
          slots,
          role,
          residual,
          bias,
        }),
      }
    },
    tolerance: 5e-6,
  }
}

export const servedLinearCases: OpCase[] = [
  ...formats.map(([format, block]) => served(format, block, 5, 192, 72, 'decode')),
  ...[1, 2, 3, 8, 13, 64].map((n) => served('int4', 32, n, 576, 200, 'decode')),
  served('int8', 32, 9, 576, 1030, 'decode'),
  served('int4', 32, 33, 192, 72, 'prefill'),
  ...[1, 7].flatMap((n) => [
    served('int4', 32, n, 192, 72, 'decode', 'a norm'),
    served('int8', 32, n, 192, 72, 'decode', 'a gating'),
    served('nf4', 64, n, 192, 72, 'decode', 'a gating'),
  ]),
]

/** Three linears of one x, each with its slots, as the compiler puts them together. */
function group(format: WeightFormat, n: number, before: Before = 'nothing'): OpCase {
  const k = 192
  const outs = [72, 40, 200]
  const rank = 4
  const floats = Math.max(...outs) * rank + k * rank
  return {
    op: 'QuantLinearGroup',
    name: `${format}, ${n} rows, after ${before}`,
    dims: { N: n },
    build(c) {
      const x = prepared(c, before, k)
      const arena = c.real('arena', [outs.length * floats], 0.1, 0.02, 'parameter')
      const rowSlot = c.given(
        'rowSlot',
        'i32',
        ['N'],
        Array.from({ length: n }, (_, i) => (i % 3 === 1 ? -1 : 0)),
      )
      return Object.fromEntries(
        outs.map((out, i) => {
          const row = [i * floats, i * floats + rank * k, rank, floatBits(0.5 + i), 0, 0, 0, 0]
          const table = c.given(`table${i}`, 'i64', [1, 8], row)
          const options = { role: 'decode', slots: { arena, table, rowSlot, maxRank: rank } } as const
          return [`y${i}`, quantLinear(x, c.weight(`w${i}`, format, 32, out, k), options)]
        }),
      )
    },
  }
}

export const groupCases: OpCase[] = [
  group('int4', 1),
  group('int4', 7),
  group('int8', 5),
  group('int4', 1, 'a norm'),
  group('int4sym', 5, 'a norm'),
]
