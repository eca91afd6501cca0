import { attention } from '../../../src/compiler/ops/attention.js'
import { dropout } from '../../../src/compiler/ops/dropout.js'
import { scale } from '../../../src/compiler/ops/elementwise.js'
import { rmsNorm } from '../../../src/compiler/ops/norms.js'
import { convert, rotary, swiGlu } from '../../../src/compiler/ops/rotary.js'
import type { OpCase } from '../case.js'

const norm = (n: number, width: number, size: number): OpCase => ({
  op: 'RmsNorm',
  name: `${n}×${width} in groups of ${size}`,
  dims: { N: n },
  wrt: ['x'],
  through: ['y'],
  build: (c) => ({ y: rmsNorm(c.activation('x', ['N', width]), c.real('weight', [size], 0.1, 1), 1e-5) }),
})

const attend = (lengths: number[], heads: number, kvHeads: number, headDim: number, window = 0): OpCase => {
  const n = lengths.reduce((a, b) => a + b, 0)
  const ends = [0]
  for (const length of lengths) ends.push(ends.at(-1)! + length)
  return {
    op: 'Attention',
    name: `documents ${lengths.join('+')}, ${heads}/${kvHeads} heads of ${headDim}${window ? `, window ${window}` : ''}`,
    dims: { N: n, S: ends.length },
    wrt: ['q', 'k', 'v'],
    through: ['out'],
    build: (c) => ({
      out: attention(
        c.activation('q', ['N', heads * headDim]),
        c.activation('k', ['N', kvHeads * headDim]),
        c.activation('v', ['N', kvHeads * headDim]),
        c.given('cuSeqlens', 'i32', ['S'], ends),
        { numHeads: heads, numKeyValueHeads: kvHeads, headDim, window },
      ),
    }),
    tolerance: 5e-6,
    fastTolerance: 3e-2,
  }
}

export const normCases: OpCase[] = [norm(1, 64, 64), norm(37, 576, 576), norm(7, 96, 24), norm(130, 320, 320)]

export const attentionCases: OpCase[] = [
  attend([1], 2, 1, 16),
  attend([7], 4, 2, 16),
  attend([97, 3, 65], 9, 3, 64),
  attend([130], 2, 2, 80),
  attend([70, 61], 2, 1, 128),
  attend([100], 4, 2, 32, 8),
  attend([257], 3, 1, 64, 100),
]

export const rotaryCases: OpCase[] = [
  [3, 2, 16],
  [65, 9, 64],
  [5, 1, 128],
].map(([n, heads, headDim]) => ({
  op: 'Rotary',
  name: `${n} tokens, ${heads} heads of ${headDim}`,
  dims: { N: n! },
  wrt: ['x'],
  through: ['y'],
  build: (c) => ({
    y: rotary(
      c.activation('x', ['N', heads! * headDim!]),
      c.real('cos', ['N', headDim! / 2]),
      c.real('sin', ['N', headDim! / 2]),
      headDim!,
    ),
  }),
}))

export const swiGluCases: OpCase[] = [
  [1, 64],
  [33, 100],
  [130, 1536],
].map(([n, f]) => ({
  op: 'SwiGlu',
  name: `${n}×${f}`,
  dims: { N: n! },
  wrt: ['gate', 'up'],
  through: ['y'],
  build: (c) => ({ y: swiGlu(c.activation('gate', ['N', f!], 3), c.activation('up', ['N', f!])) }),
}))

export const dropoutCases: OpCase[] = [0, 0.1, 0.5].map((probability) => ({
  op: 'Dropout',
  name: `p ${probability}`,
  dims: { N: 33 },
  wrt: ['x'],
  through: ['y'],
  build: (c) => {
    const x = c.activation('x', ['N', 70])
    const keys = Array.from({ length: 33 }, (_, i) => (i % 5) * 2 ** 32 + i)
    const random = {
      rowKeys: c.given('rowKeys', 'i64', ['N'], keys),
      seed: c.given('seed', 'i64', [1], [7 * 2 ** 32 + 3]),
      probability,
      module: 5,
    }
    return { y: dropout(x, random) }
  },
}))

export const convertCases: OpCase[] = [
  {
    op: 'Convert',
    name: 'f32 to bf16 and back',
    dims: { N: 77 },
    build: (c) => {
      const x = c.real('x', ['N', 33])
      return { y: c.graph.kernels ? convert(convert(x, 'bf16'), 'f32') : scale(scale(x, 2), 0.5) }
    },
    // Half a unit in the last of 8 bits.
    tolerance: 2 ** -8,
  },
]
