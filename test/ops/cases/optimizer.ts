import { adamW } from '../../../src/compiler/ops/adamw.js'
import type { OpCase } from '../case.js'

const adam = (name: string, length: number, ranges: [number, number][], maxGradNorm: number): OpCase => ({
  op: 'AdamW',
  name,
  dims: {},
  build(c) {
    const isTrained = (i: number) => ranges.some(([at, n]) => i >= at && i < at + n)
    const state = {
      params: c.real('params', [length], 1, 0, 'state'),
      // Outside the groups lies padding, where gradients are zero.
      grads: c.given(
        'grads',
        'f32',
        [length],
        Array.from({ length }, (_, i) => (isTrained(i) ? (c.integer(4096) - 2048) / 16384 : 0)),
        'state',
      ),
      m: c.given(
        'm',
        'f32',
        [length],
        Array.from({ length }, (_, i) => (isTrained(i) ? (c.integer(4096) - 2048) / 131072 : 0)),
        'state',
      ),
      v: c.given(
        'v',
        'f32',
        [length],
        Array.from({ length }, (_, i) => (isTrained(i) ? c.integer(1000) * 2 ** -16 : 0)),
        'state',
      ),
    }
    const t = 3
    const hyper = c.given('hyper', 'f32', [8], [1e-2, 0.9, 0.999, 1e-8, 1 - 0.9 ** t, 1 - 0.999 ** t, maxGradNorm, 0])
    const groups = c.given('groups', 'i64', [ranges.length, 2], ranges.flat())
    const groupHyper = c.given(
      'groupHyper',
      'f32',
      [ranges.length, 2],
      ranges.flatMap((_, i) => [1 + i, 0.01 * i]),
    )
    const { params, m, v, gradNorm } = adamW(
      state,
      hyper,
      groups,
      groupHyper,
      ranges.map(([offset, size]) => ({ offset, length: size })),
    )
    return { newParams: params, newM: m, newV: v, gradNorm }
  },
  tolerance: 1e-6,
})

export const adamWCases: OpCase[] = [
  adam('one group, clipped', 1000, [[0, 1000]], 1),
  adam('one group, not clipped', 17, [[0, 17]], 0),
  adam(
    'two groups with a gap',
    100,
    [
      [0, 48],
      [64, 36],
    ],
    0.5,
  ),
]
