// Attention over a paged cache (PagedAttention: arXiv 2309.06180): writes the keys and values of the new rows into their
// blocks and lets every row attend to its sequence up to its own position. How a block is laid out inside is the
// implementation's own: the lowering keeps whole tokens, the kernel what its products read.
import type { DType, Value } from '../graph.js'
import { defineOp, type RealNumber, real } from '../op.js'
import { add, and, cast, div, equal, greaterOrEqual, less, mod, mul, scale, sub, where } from './elementwise.js'
import { matMul, softmax } from './linear-algebra.js'
import { reduceSum } from './reduce.js'
import { rotary } from './rotary.js'
import { gather, gatherElements, reshape, rowIndices, ScatterND, transpose, unsqueeze } from './shape.js'
import { need, staticDim } from './shape-rules.js'
import { constant, scalar } from './tensor.js'

/** Tokens of a block. */
export const CACHE_BLOCK = 32

/** How entries are held, with the codes of the attribute `cache_type` and the bytes of one. */
export const cacheTypes = {
  f32: { code: 0, bytes: 4 },
  bf16: { code: 1, bytes: 2 },
  int8: { code: 2, bytes: 1 },
} as const
export type CacheType = keyof typeof cacheTypes

export interface CacheTensor {
  readonly name: string
  readonly dtype: DType
  readonly shape: readonly number[]
  /** The axis that counts blocks. */
  readonly blockAxis: number
}

/**
 * What one layer's cache of `blocks` blocks is made of, in the order of the op's inputs: to the kernel bytes whose layout
 * is its own, to the lowering real numbers (then `type` does not count).
 */
export function cacheTensors(
  target: { readonly kernels: boolean; readonly floatType?: 'f32' | 'f64' },
  type: CacheType,
  blocks: number,
  kvHeads: number,
  headDim: number,
): CacheTensor[] {
  const entries = CACHE_BLOCK * headDim
  if (!target.kernels) {
    const dtype: DType = target.floatType ?? 'f32'
    return ['keys', 'values'].map((name) => ({ name, dtype, shape: [blocks, kvHeads, entries], blockAxis: 0 }))
  }
  const names = type === 'int8' ? ['keys', 'values', 'keyScales', 'valueScales'] : ['keys', 'values']
  return names.map((name) => {
    const isScale = name.endsWith('Scales')
    const shape = [kvHeads, blocks, isScale ? CACHE_BLOCK : entries * cacheTypes[type].bytes]
    return { name, dtype: isScale ? 'f16' : 'u8', shape, blockAxis: 1 }
  })
}

type PagedAttributes = {
  num_heads: number
  num_kv_heads: number
  head_dim: number
  window: number
  cache_type: number
  scale: RealNumber
}

/** Up to four tensors of the cache. */
const INPUT = {
  q: 0,
  k: 1,
  v: 2,
  blockTables: 3,
  rowSequence: 4,
  positions: 5,
  cache: 6,
  cosine: 10,
  sine: 11,
} as const

export const PagedAttention = defineOp<PagedAttributes>({
  opType: 'PagedAttention',
  domain: 'espalier',
  activationInputs: [0, 1, 2],
  activationOutputs: [0],
  mutates: { 1: 6, 2: 7, 3: 8, 4: 9 },
  infer: (inputs) => [
    need(inputs[INPUT.q], 'PagedAttention q'),
    ...inputs.slice(INPUT.cache, INPUT.cosine).flatMap((x) => x ?? []),
  ],
  gradient: 'unsupported',
  lower(g, inputs, a) {
    const [, , v, blockTables, rowSequence, positions, keys, values] = inputs as Value[]
    const { [INPUT.cosine]: cosine, [INPUT.sine]: sine } = inputs
    const turn = (x: Value) => (cosine ? rotary(x, cosine, sine!, a.head_dim) : x)
    const [q, k] = [turn(inputs[INPUT.q]!), turn(inputs[INPUT.k]!)]
    const n = q!.shape[0]!
    const int = (x: number) => scalar(g, x, 'i64')
    const size = a.num_kv_heads * a.head_dim
    const group = a.num_heads / a.num_kv_heads
    const tables = cast(gather(blockTables!, cast(rowSequence!, 'i64')), 'i64') // [N, B]
    const perSequence = staticDim(tables.shape[1], 'PagedAttention blockTables')
    const length = perSequence * CACHE_BLOCK
    const position = unsqueeze(cast(positions!, 'i64'), [1]) // [N, 1]
    const place = gatherElements(tables, div(position, int(CACHE_BLOCK)), 1)
    const slot = add(mul(place, int(CACHE_BLOCK)), mod(position, int(CACHE_BLOCK))) // [N, 1]
    const write = (cache: Value, rows: Value) => {
      const tokens = staticDim(cache.shape[0], 'PagedAttention cache') * CACHE_BLOCK
      return g.apply(ScatterND, [reshape(cache, [tokens, size]), slot, cast(rows, cache.dtype)], {
        reduction: 'none',
      })[0]!
    }
    const written = [write(keys!, k!), write(values!, v!)] as const // [tokens, K·Dh]
    // Every sequence's tokens once, all rows against all sequences, and of each row what belongs to its own.
    const sequences = blockTables!.shape[0]!
    const offsets = Array.from({ length: CACHE_BLOCK }, (_, i) => i)
    const blocks = unsqueeze(mul(cast(blockTables!, 'i64'), int(CACHE_BLOCK)), [2])
    const tokens = reshape(add(blocks, constant(g, offsets, [1, 1, CACHE_BLOCK], 'i64')), [sequences, length])
    const read = (cache: Value) => reshape(gather(cache, tokens), [sequences, length, a.num_kv_heads, a.head_dim])
    const queries = transpose(reshape(q!, [n, a.num_kv_heads, group, a.head_dim]), [1, 2, 0, 3])
    const keysOf = unsqueeze(transpose(read(written[0]), [0, 2, 3, 1]), [2]) // [S, K, 1, Dh, L]
    const valuesOf = unsqueeze(transpose(read(written[1]), [0, 2, 1, 3]), [2]) // [S, K, 1, L, Dh]
    const scores = scale(matMul(unsqueeze(queries, [0]), keysOf), a.scale.real) // [S, K, G, N, L]
    const key = constant(
      g,
      Array.from({ length }, (_, i) => i),
      [1, length],
      'i64',
    )
    let seen = greaterOrEqual(position, key) // [N, L]
    if (a.window > 0) seen = and(seen, less(sub(position, key), int(a.window)))
    const weights = softmax(where(unsqueeze(seen, [0, 1, 2]), scores, scalar(g, -1e30, g.floatType)))
    const own = equal(unsqueeze(rowIndices(blockTables!), [1]), unsqueeze(cast(rowSequence!, 'i64'), [0])) // [S, N]
    const mixed = where(unsqueeze(own, [1, 2, 4]), matMul(weights, valuesOf), scalar(g, 0, g.floatType))
    const summed = transpose(reduceSum(mixed, [0]), [2, 0, 1, 3]) // [N, K, G, Dh]
    return [reshape(summed, q!.shape), reshape(written[0], keys!.shape), reshape(written[1], values!.shape)]
  },
  flops(node, dims) {
    const q = node.inputs[INPUT.q]!
    const rows = typeof q.shape[0] === 'string' ? (dims[q.shape[0]] ?? 1) : q.shape[0]!
    const length = (node.inputs[INPUT.blockTables]!.shape[1] as number) * CACHE_BLOCK
    return 4 * rows * length * (q.shape[1] as number)
  },
})

export interface PagedShape {
  readonly numHeads: number
  readonly numKeyValueHeads: number
  readonly headDim: number
  /** Tokens a query sees, itself included; 0: all before it. */
  readonly window?: number
  readonly cacheType: CacheType
  /** cos and sin [N, Dh/2] by which q and k are turned first; absent: they are already. */
  readonly rotation?: { readonly cosine: Value; readonly sine: Value }
}

/** Where the rows of a batch lie: tables i32 [S, B], sequence and position i32 [N]. */
export interface PagedRows {
  readonly blockTables: Value
  readonly rowSequence: Value
  readonly positions: Value
}

/** q [N, H·Dh], k and v [N, K·Dh] -> out [N, H·Dh] and the cache's tensors after the write, in their order. */
export function pagedAttention(
  q: Value,
  k: Value,
  v: Value,
  rows: PagedRows,
  cache: readonly Value[],
  shape: PagedShape,
): { out: Value; cache: readonly Value[] } {
  const [out, ...updated] = q.graph.apply(
    PagedAttention,
    [
      ...[q, k, v, rows.blockTables, rows.rowSequence, rows.positions],
      ...Array.from({ length: INPUT.cosine - INPUT.cache }, (_, i) => cache[i] ?? null),
      shape.rotation?.cosine ?? null,
      shape.rotation?.sine ?? null,
    ],
    {
      num_heads: shape.numHeads,
      num_kv_heads: shape.numKeyValueHeads,
      head_dim: shape.headDim,
      window: shape.window ?? 0,
      cache_type: cacheTypes[shape.cacheType].code,
      scale: real(1 / Math.sqrt(shape.headDim)),
    },
  )
  return { out: out!, cache: updated }
}
