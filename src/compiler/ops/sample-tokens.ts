// Chooses the next token of every row inside the graph, so that only ids and log-probabilities leave it. The order is
// Hugging Face's: penalties, bias and mask on the logits, then temperature, top-k, top-p over what is left, min-p; equal
// logits at a threshold are all kept. The draw is by the Gumbel-max trick (Gumbel 1954): the largest of logit / T + g,
// g = −log(−log(1 − w)) with w from the counter-based hash of dropout.ts keyed by seed, position and token, so that a draw
// depends on nothing else in the batch. A temperature of 0 takes the likeliest token, the lowest id of equals.
import type { Value } from '../graph.js'
import { defineOp } from '../op.js'
import { halves, hashStep } from './dropout.js'
import {
  abs,
  add,
  and,
  bitwiseAnd,
  cast,
  div,
  equal,
  exp,
  greater,
  greaterOrEqual,
  less,
  log,
  max,
  mul,
  neg,
  scale,
  sub,
  where,
} from './elementwise.js'
import { softmax } from './linear-algebra.js'
import { argMax, cumSum, reduceMax, reduceSum, topK } from './reduce.js'
import { concat, gather, gatherElements, gatherND, reshape, ScatterND, slice, unsqueeze } from './shape.js'
import { need, staticDim } from './shape-rules.js'
import { constant, scalar } from './tensor.js'

/** Columns of the `sampling` input, f32 [R, 8]. */
export const samplingColumns = {
  temperature: 0,
  topK: 1,
  topP: 2,
  minP: 3,
  repetitionPenalty: 4,
  frequencyPenalty: 5,
  presencePenalty: 6,
  topLogps: 7,
} as const
export const SAMPLING_COLUMNS = 8
/** Alternatives that are reported at most. */
export const MAX_TOP_LOGPS = 20
/** Tokens of one word of a mask. */
export const MASK_BITS = 32
/** Words of a mask over a vocabulary. */
export const maskWords = (vocabSize: number): number => Math.ceil(vocabSize / MASK_BITS)

/** Inputs of a draw beside the logits; R rows, E edits, C masks. */
export interface SampleInputs {
  /** f32 [R, 8], see samplingColumns. */
  readonly sampling: Value
  /** i64 [R] */
  readonly seeds: Value
  /** i32 [R]: positions of the tokens to be drawn. */
  readonly positions: Value
  /** i32 [E]: rows of tokens whose logit changes, −1 for none; a token occurs once a row. */
  readonly editRows: Value
  /** i32 [E] */
  readonly editTokens: Value
  /** f32 [E, 2]: occurrences in the sequence, and among its generated tokens. */
  readonly editCounts: Value
  /** f32 [E] */
  readonly editBias: Value
  /** i32 [R]: row of `allowed`, −1 for none. */
  readonly maskRows: Value
  /** i32 [C, ⌈V/32⌉]: bit i % 32 of word i / 32 allows token i. */
  readonly allowed: Value
}

const HIDDEN = -1e30

/** Logits [R, V] after penalties, bias and mask. */
function editedLogits(logits: Value, x: SampleInputs): Value {
  const g = logits.graph
  const vocab = staticDim(logits.shape[1], 'SampleTokens logits')
  const zero = scalar(g, 0, logits.dtype)
  const int = (n: number) => scalar(g, n, 'i64')
  const isUsed = greaterOrEqual(x.editRows, scalar(g, 0, 'i32')) // [E]
  const row = max(cast(x.editRows, 'i64'), int(0))
  const at = concat([unsqueeze(row, [1]), unsqueeze(cast(x.editTokens, 'i64'), [1])], 1) // [E, 2]
  const old = gatherND(logits, at) // [E]
  const of = (column: number) => reshape(slice(gather(x.sampling, row), 1, column, column + 1), x.editRows.shape)
  const count = (column: number) => reshape(slice(x.editCounts, 1, column, column + 1), x.editRows.shape)
  const repetition = of(samplingColumns.repetitionPenalty)
  const isSeen = greater(count(0), zero)
  const divided = where(greater(old, zero), div(old, repetition), mul(old, repetition))
  let changed = where(isSeen, divided, old)
  changed = sub(changed, mul(of(samplingColumns.frequencyPenalty), count(1)))
  changed = sub(changed, where(greater(count(1), zero), of(samplingColumns.presencePenalty), zero))
  changed = add(changed, x.editBias)
  const delta = where(isUsed, sub(changed, old), zero)
  const edited = g.apply(ScatterND, [logits, at, delta], { reduction: 'add' })[0]!

  const tokens = Array.from({ length: vocab }, (_, i) => i)
  const ints = (data: number[]) => constant(g, data, [data.length], 'i64')
  const words = cast(gather(x.allowed, max(cast(x.maskRows, 'i64'), int(0))), 'i64') // [R, W]
  const unsigned = bitwiseAnd(words, int(2 ** 32 - 1))
  const spread = gather(unsigned, ints(tokens.map((i) => Math.floor(i / MASK_BITS))), 1) // [R, V]
  const bits = bitwiseAnd(div(spread, ints(tokens.map((i) => 2 ** (i % MASK_BITS)))), int(1))
  const isFree = unsqueeze(less(x.maskRows, scalar(g, 0, 'i32')), [1])
  const isAllowed = greater(add(bits, cast(isFree, 'i64')), int(0))
  return where(isAllowed, edited, scalar(g, HIDDEN, logits.dtype))
}

/** Gumbel noise [R, V]. */
function gumbel(logits: Value, x: SampleInputs): Value {
  const g = logits.graph
  const vocab = staticDim(logits.shape[1], 'SampleTokens logits')
  const int = (n: number) => scalar(g, n, 'i64')
  let key = int(0)
  const words = [...halves(unsqueeze(x.seeds, [1])), unsqueeze(cast(x.positions, 'i64'), [1]), int(0)]
  for (const word of words) key = hashStep(key, word)
  const tokens = constant(
    g,
    Array.from({ length: vocab }, (_, i) => i),
    [1, vocab],
    'i64',
  )
  const hash = cast(hashStep(key, tokens), logits.dtype) // [R, V]
  const real = (n: number) => scalar(g, n, logits.dtype)
  const w = scale(add(hash, real(0.5)), 2 ** -32)
  // −log(1 − w): for small w by its series, which keeps the digits that 1 − w would lose
  const series = mul(w, add(real(1), mul(w, add(real(0.5), scale(w, 1 / 3)))))
  const exponential = where(less(w, real(1e-3)), series, neg(log(sub(real(1), w))))
  return neg(log(exponential))
}

/** bool [R, V]: the tokens that temperature, top-k, top-p and min-p leave; `z` is logit / T. */
function keptTokens(z: Value, sampling: Value): Value {
  const g = z.graph
  const vocab = staticDim(z.shape[1], 'SampleTokens logits')
  const column = (i: number) => slice(sampling, 1, i, i + 1) // [R, 1]
  const int = (n: number) => scalar(g, n, 'i64')
  const real = (n: number) => scalar(g, n, z.dtype)
  const { values } = topK(z, vocab) // descending
  const k = column(samplingColumns.topK)
  const isCut = and(greater(k, real(0)), less(k, real(vocab)))
  const last = cast(where(isCut, sub(k, real(1)), real(vocab - 1)), 'i64')
  const kth = gatherElements(values, last, 1) // [R, 1]
  const left = where(greaterOrEqual(values, kth), values, real(HIDDEN))
  const p = softmax(left)
  // kept while what comes before has less than topP; the first one always
  const before = sub(cumSum(p, 1), p)
  const isKept = less(before, column(samplingColumns.topP))
  const count = max(reduceSum(cast(isKept, 'i64'), [1], true), int(1))
  const nucleus = gatherElements(left, sub(count, int(1)), 1)
  const floor = add(reduceMax(z, [1], true), log(column(samplingColumns.minP)))
  return and(and(greaterOrEqual(z, kth), greaterOrEqual(z, nucleus)), greaterOrEqual(z, floor))
}

export const SampleTokens = defineOp<Record<string, never>>({
  opType: 'SampleTokens',
  domain: 'espalier',
  infer([logits]) {
    const rows = need(logits, 'SampleTokens logits').shape[0]!
    return [
      { dtype: 'i32', shape: [rows] },
      { dtype: logits!.dtype, shape: [rows] },
      { dtype: 'i32', shape: [rows, MAX_TOP_LOGPS] },
      { dtype: logits!.dtype, shape: [rows, MAX_TOP_LOGPS] },
    ]
  },
  gradient: 'stops',
  lower(g, inputs) {
    const [logits, sampling, seeds, positions, editRows, editTokens, editCounts, editBias, maskRows, allowed] =
      inputs as Value[]
    const x = {
      sampling,
      seeds,
      positions,
      editRows,
      editTokens,
      editCounts,
      editBias,
      maskRows,
      allowed,
    } as SampleInputs
    const rows = logits!.shape[0]!
    const vocab = staticDim(logits!.shape[1], 'SampleTokens logits')
    const edited = editedLogits(logits!, x)
    const temperature = slice(x.sampling, 1, samplingColumns.temperature, samplingColumns.temperature + 1) // [R, 1]
    const isGreedy = equal(temperature, scalar(g, 0, temperature.dtype))
    const z = div(edited, where(isGreedy, scalar(g, 1, edited.dtype), abs(temperature)))
    const noisy = where(keptTokens(z, x.sampling), add(z, gumbel(z, x)), scalar(g, 2 * HIDDEN, z.dtype))
    const token = argMax(where(isGreedy, edited, noisy), 1) // i64 [R, 1]
    const top = reduceMax(logits!, [1], true)
    const lse = add(log(reduceSum(exp(sub(logits!, top)), [1], true)), top) // [R, 1]
    const logp = sub(gatherElements(logits!, token, 1), lse)
    if (vocab < MAX_TOP_LOGPS) throw new Error(`SampleTokens: a vocabulary of ${vocab}; ${MAX_TOP_LOGPS} is the least`)
    const best = topK(logits!, MAX_TOP_LOGPS)
    return [
      reshape(cast(token, 'i32'), [rows]),
      reshape(logp, [rows]),
      cast(best.indices, 'i32'),
      sub(best.values, lse),
    ]
  },
})

/** logits f32 [R, V] -> chosen tokens i32 [R], their log-probabilities f32 [R], the likeliest i32 and f32 [R, 20]. */
export function sampleTokens(logits: Value, inputs: SampleInputs) {
  const { sampling, seeds, positions, editRows, editTokens, editCounts, editBias, maskRows, allowed } = inputs
  const [tokens, logps, topIds, topLogps] = logits.graph.apply(
    SampleTokens,
    [logits, sampling, seeds, positions, editRows, editTokens, editCounts, editBias, maskRows, allowed],
    {},
  )
  return { tokens: tokens!, logps: logps!, topIds: topIds!, topLogps: topLogps! }
}
