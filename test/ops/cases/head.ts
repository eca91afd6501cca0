import { mul, neg } from '../../../src/compiler/ops/elementwise.js'
import { embedding, linearLogProb } from '../../../src/compiler/ops/linear-log-prob.js'
import { reduceSum } from '../../../src/compiler/ops/reduce.js'
import type { WeightFormat } from '../../../src/compiler/ops/weight.js'
import type { CaseBuilder, OpCase } from '../case.js'

interface HeadSize {
  n: number
  m: number
  d: number
  vocab: number
}

function head(
  c: CaseBuilder,
  format: WeightFormat,
  { m, n, d, vocab }: HeadSize,
  options: { temperature?: boolean; softcap?: number; masked?: boolean; distinctRows?: boolean } = {},
) {
  const rows = Array.from({ length: m }, (_, i) => Math.floor((i * n) / m))
  const labels = rows.map((_, i) => (options.masked && i % 4 === 1 ? -100 : c.integer(vocab)))
  return linearLogProb(
    c.activation('h', ['N', d], 2),
    c.weight('w', format, 32, vocab, d),
    c.given('labels', 'i32', ['M'], labels),
    c.given('lossRows', 'i32', ['M'], rows),
    options.temperature || options.softcap
      ? { temperature: c.given('temperature', 'f32', [1], [0.7]), softcap: options.softcap ?? 0, logitScale: 0.5 }
      : { distinctRows: options.distinctRows ?? false },
  )
}

const small = { n: 9, m: 7, d: 64, vocab: 300 }
const formats: WeightFormat[] = ['int8', 'int4', 'f32', 'bf16']

export const logProbCases: OpCase[] = [
  ...formats.map(
    (format): OpCase => ({
      op: 'LinearLogProb',
      name: `${format}, 7 of 9 rows, vocabulary 300`,
      dims: { N: small.n, M: small.m },
      wrt: ['h'],
      through: ['logps', 'entropy', 'lse'],
      build: (c) => ({ ...head(c, format, small) }),
      tolerance: 5e-6,
      fastTolerance: 3e-2,
    }),
  ),
  {
    op: 'LinearLogProb',
    name: 'temperature, softcap, logit scale, rows without a label',
    dims: { N: 70, M: 66 },
    wrt: ['h'],
    through: ['logps'],
    build: (c) => ({
      logps: head(c, 'int8', { n: 70, m: 66, d: 96, vocab: 1001 }, { temperature: true, softcap: 5, masked: true })
        .logps,
    }),
    tolerance: 5e-6,
    fastTolerance: 3e-2,
  },
  {
    // The incoming gradient does not depend on the result: one pass computes both.
    op: 'LinearLogProbFused',
    name: 'weighted sum of log-probabilities, 130 rows',
    dims: { N: 140, M: 130 },
    wrt: ['h'],
    through: ['loss'],
    build: (c) => {
      const { logps, entropy } = head(c, 'int8', { n: 140, m: 130, d: 192, vocab: 2049 })
      return { loss: neg(reduceSum(mul(logps, c.real('weights', ['M'], 0.1)), [0])), logps, entropy }
    },
    // Sums over 2,049 entries.
    tolerance: 1e-5,
    fastTolerance: 3e-2,
  },
  {
    // The incoming gradient depends on the result: one pass gives the factor of each row's.
    op: 'LinearLogProbFused',
    name: 'a loss of the log-probabilities, 66 of 70 rows, some without a label',
    dims: { N: 70, M: 66 },
    wrt: ['h'],
    through: ['loss'],
    build: (c) => {
      const sizes = { n: 70, m: 66, d: 192, vocab: 2049 }
      const { logps, entropy } = head(c, 'int8', sizes, { masked: true, distinctRows: true })
      return { loss: neg(reduceSum(mul(logps, mul(logps, c.real('weights', ['M'], 0.1))), [0])), logps, entropy }
    },
    tolerance: 1e-5,
    fastTolerance: 3e-2,
  },
]

export const embeddingCases: OpCase[] = formats.map((format) => ({
  op: 'Embedding',
  name: format,
  dims: { N: 11 },
  build: (c) => ({
    y: embedding(
      c.given(
        'ids',
        'i32',
        ['N'],
        Array.from({ length: 11 }, () => c.integer(50)),
      ),
      c.weight('w', format, 32, 50, 96),
    ),
  }),
}))
