import type { Value } from '../../../src/compiler/graph.js'
import { CACHE_BLOCK, type CacheType, cacheTensors, pagedAttention } from '../../../src/compiler/ops/paged-attention.js'
import { MASK_BITS, maskWords, SAMPLING_COLUMNS, sampleTokens } from '../../../src/compiler/ops/sample-tokens.js'
import type { CaseBuilder, OpCase } from '../case.js'

interface PagedCase {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly cacheType: CacheType
  readonly window?: number
  /** Queries and keys come unturned, with the angles' cosines and sines. */
  readonly turns?: boolean
  /** Per batch: the tokens that each sequence gets, in rows of sequence after sequence. */
  readonly batches: readonly (readonly number[])[]
}

/** Several batches one after another over one cache, blocks handed out in a scattered order. */
function paged(name: string, p: PagedCase, tolerance: number): OpCase {
  const count = p.batches[0]!.length
  const lengths = Array.from({ length: count }, (_, s) => p.batches.reduce((n, batch) => n + batch[s]!, 0))
  const perSequence = Math.max(...lengths.map((n) => Math.ceil(n / CACHE_BLOCK)))
  const blocks = count * perSequence + 1
  const tables = Array.from({ length: count * perSequence }, (_, i) => (i * 7 + 3) % blocks)
  const isScattered = new Set(tables).size === tables.length
  const table = isScattered ? tables : tables.map((_, i) => blocks - 1 - i)
  const dims = Object.fromEntries(p.batches.map((batch, b) => [`N${b}`, batch.reduce((n, x) => n + x, 0)]))
  return {
    op: 'PagedAttention',
    name,
    dims,
    build(c) {
      const shape = {
        numHeads: p.heads,
        numKeyValueHeads: p.kvHeads,
        headDim: p.headDim,
        window: p.window ?? 0,
        cacheType: p.cacheType,
      }
      let cache: readonly Value[] = cacheTensors(c.graph, p.cacheType, blocks, p.kvHeads, p.headDim).map((t) => {
        const size = t.shape.reduce((n, d) => n * d, 1)
        return c.given(t.name, t.dtype === 'f64' ? 'f32' : t.dtype, t.shape, Array<number>(size).fill(0), 'state')
      })
      const blockTables = c.given('tables', 'i32', [count, perSequence], table)
      const done = Array<number>(count).fill(0)
      const outputs: Record<string, Value> = {}
      p.batches.forEach((batch, b) => {
        const n = `N${b}`
        const rows = batch.flatMap((tokens, s) => Array.from({ length: tokens }, (_, i) => [s, done[s]! + i] as const))
        const at = {
          blockTables,
          rowSequence: c.given(
            `sequence${b}`,
            'i32',
            [n],
            rows.map(([s]) => s),
          ),
          positions: c.given(
            `position${b}`,
            'i32',
            [n],
            rows.map(([, position]) => position),
          ),
        }
        const q = c.activation(`q${b}`, [n, p.heads * p.headDim])
        const k = c.activation(`k${b}`, [n, p.kvHeads * p.headDim])
        const v = c.activation(`v${b}`, [n, p.kvHeads * p.headDim])
        const angles = (name: string) => c.real(`${name}${b}`, [n, p.headDim / 2], 0.6)
        const rotation = p.turns ? { rotation: { cosine: angles('cos'), sine: angles('sin') } } : {}
        const result = pagedAttention(q, k, v, at, cache, { ...shape, ...rotation })
        cache = result.cache
        outputs[`y${b}`] = result.out
        for (const [s] of rows) done[s]!++
      })
      return outputs
    },
    tolerance,
    fastTolerance: Math.max(tolerance, 2e-2),
  }
}

const small = { heads: 6, kvHeads: 2, headDim: 16 }
const large = { heads: 9, kvHeads: 3, headDim: 64 }

export const pagedAttentionCases: OpCase[] = [
  paged(
    'prompts, then a token each',
    {
      ...small,
      cacheType: 'f32',
      batches: [
        [5, 40, 33],
        [1, 1, 1],
      ],
    },
    2e-6,
  ),
  paged(
    'chunks of a prompt',
    {
      ...small,
      cacheType: 'f32',
      batches: [
        [7, 3],
        [30, 2],
        [20, 70],
      ],
    },
    2e-6,
  ),
  paged(
    'turned',
    {
      ...large,
      cacheType: 'f32',
      turns: true,
      batches: [
        [40, 5],
        [1, 1],
      ],
    },
    4e-6,
  ),
  paged('turned, int8', { ...small, cacheType: 'int8', turns: true, batches: [[33], [1], [2]] }, 2e-2),
  paged('past a chunk of keys', { ...large, cacheType: 'f32', batches: [[530], [1], [3]] }, 4e-6),
  paged(
    'a window',
    {
      ...small,
      cacheType: 'f32',
      window: 20,
      batches: [
        [600, 5],
        [2, 30],
      ],
    },
    4e-6,
  ),
  paged(
    'bf16',
    {
      ...large,
      cacheType: 'bf16',
      batches: [
        [40, 5],
        [1, 1],
        [4, 1],
      ],
    },
    1e-2,
  ),
  paged('bf16, past a chunk of keys', { ...large, cacheType: 'bf16', batches: [[520], [1]] }, 1e-2),
  paged(
    'int8',
    {
      ...large,
      cacheType: 'int8',
      batches: [
        [40, 5],
        [1, 1],
        [4, 1],
      ],
    },
    2e-2,
  ),
  paged(
    'heads of 24, one kv head',
    {
      heads: 4,
      kvHeads: 1,
      headDim: 24,
      cacheType: 'f32',
      batches: [
        [9, 50],
        [2, 1],
      ],
    },
    2e-6,
  ),
]

const vocab = 1000

interface DrawCase {
  readonly name: string
  /** One row of `sampling` each. */
  readonly rows: readonly (readonly number[])[]
  readonly edits?: readonly { row: number; token: number; counts: readonly [number, number]; bias: number }[]
  /** Rows that a mask holds for, and the tokens that it allows. */
  readonly mask?: { readonly rows: readonly number[]; allows(token: number): boolean }
}

function draw(d: DrawCase): OpCase {
  const edits = d.edits ?? [{ row: -1, token: 0, counts: [0, 0] as const, bias: 0 }]
  const words = maskWords(vocab)
  return {
    op: 'SampleTokens',
    name: d.name,
    dims: { R: d.rows.length, E: edits.length, C: 1 },
    build(c: CaseBuilder) {
      const mask = Array.from({ length: words }, (_, w) => {
        let bits = 0
        for (let i = 0; i < MASK_BITS; i++) if (d.mask?.allows(w * MASK_BITS + i)) bits |= 1 << i
        return bits | 0
      })
      const { tokens, logps, topIds, topLogps } = sampleTokens(c.real('logits', ['R', vocab], 3), {
        sampling: c.given('sampling', 'f32', ['R', SAMPLING_COLUMNS], d.rows.flat()),
        seeds: c.given(
          'seeds',
          'i64',
          ['R'],
          d.rows.map((_, i) => 2 ** 40 * i + 77),
        ),
        positions: c.given(
          'positions',
          'i32',
          ['R'],
          d.rows.map((_, i) => 3 * i),
        ),
        editRows: c.given(
          'editRows',
          'i32',
          ['E'],
          edits.map((e) => e.row),
        ),
        editTokens: c.given(
          'editTokens',
          'i32',
          ['E'],
          edits.map((e) => e.token),
        ),
        editCounts: c.given(
          'editCounts',
          'f32',
          ['E', 2],
          edits.flatMap((e) => e.counts),
        ),
        editBias: c.given(
          'editBias',
          'f32',
          ['E'],
          edits.map((e) => e.bias),
        ),
        maskRows: c.given(
          'maskRows',
          'i32',
          ['R'],
          d.rows.map((_, i) => (d.mask?.rows.includes(i) ? 0 : -1)),
        ),
        allowed: c.given('allowed', 'i32', ['C', words], mask),
      })
      return { tokens, logps, topIds, topLogps }
    },
    tolerance: 5e-6,
    fastTolerance: 5e-6,
  }
}

const plain = (temperature: number, topK = 0, topP = 1, minP = 0) => [temperature, topK, topP, minP, 1, 0, 0, 20]

export const sampleCases: OpCase[] = [
  draw({ name: 'greedy', rows: [plain(0), plain(0)] }),
  draw({ name: 'temperature', rows: Array.from({ length: 16 }, (_, i) => plain(0.3 + i / 8)) }),
  draw({
    name: 'top-k, top-p, min-p',
    rows: [plain(1, 5), plain(1, 0, 0.5), plain(1, 0, 1, 0.2), plain(1.3, 40, 0.9, 0.05)],
  }),
  draw({
    name: 'penalties and bias',
    rows: [
      [0, 0, 1, 0, 1.3, 0.5, 0.25, 20],
      [1, 0, 1, 0, 0.8, 0, 2, 20],
    ],
    edits: [
      { row: 0, token: 5, counts: [3, 2], bias: 0 },
      { row: 0, token: 6, counts: [0, 0], bias: 40 },
      { row: 1, token: 5, counts: [1, 0], bias: -3 },
      { row: -1, token: 5, counts: [9, 9], bias: 9 },
      { row: 1, token: 999, counts: [1, 1], bias: 25 },
    ],
  }),
  draw({
    name: 'a mask',
    rows: [plain(0), plain(1), plain(0)],
    mask: { rows: [0, 1], allows: (token) => token % 37 === 31 },
  }),
]
