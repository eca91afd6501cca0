// Composed functions whose last digits and limits count: log1p, logSigmoid, and the gradient that stops.
import { expect, it } from 'vitest'
import { backward } from '../../src/compiler/autodiff.js'
import { Graph, type Value } from '../../src/compiler/graph.js'
import { log1p, logSigmoid, mul, sigmoid, stopGradient } from '../../src/compiler/ops/elementwise.js'
import { sort } from '../../src/compiler/ops/reduce.js'
import { runOracle } from '../ops/oracle.js'

/** y and Σ dY·dy/dx of a function of one vector, dY = 1, 2, 3 …, in float64 or float32. */
async function evaluate(data: number[], build: (x: Value) => Value, dtype: 'f64' | 'f32' = 'f64') {
  const g = new Graph({ kernels: false, floatType: dtype })
  const x = g.leaf('x', 'input', dtype, ['P'])
  const y = build(x)
  g.output('y', y)
  g.output('dX', backward(g, new Map([[y, g.leaf('dY', 'input', dtype, ['P'])]]), [x]).get(x)!)
  const vector = (values: number[]) => ({ dtype, shape: [data.length], data: values })
  const { y: values, dX } = await runOracle(g, { x: vector(data), dY: vector(data.map((_, i) => i + 1)) })
  return { y: [...values!], dX: [...dX!].map((d, i) => d / (i + 1)) }
}

const epsilon = { f64: 2 ** -52, f32: 2 ** -23 }

it.each(['f64', 'f32'] as const)('log1p keeps its relative precision, %s', async (dtype) => {
  const data = [0, 1e-30, 1e-12, 1e-5, 0.03, 0.5, 1].map((x) => (dtype === 'f32' ? Math.fround(x) : x))
  const { y, dX } = await evaluate(data, log1p, dtype)
  for (const [i, x] of data.entries()) {
    expect(Math.abs(y[i]! - Math.log1p(x))).toBeLessThanOrEqual(4 * epsilon[dtype] * Math.log1p(x))
    expect(Math.abs(dX[i]! - 1 / (1 + x))).toBeLessThanOrEqual(2 * epsilon[dtype])
  }
})

it.each(['f64', 'f32'] as const)('logSigmoid is right and finite from −6000 to 6000, %s', async (dtype) => {
  const data = [-6000, -90, -3, -1e-3, 0, 1e-3, 3, 20, 80, 6000].map((x) => (dtype === 'f32' ? Math.fround(x) : x))
  const { y, dX } = await evaluate(data, logSigmoid, dtype)
  const within = (actual: number, expected: number) =>
    expect(Math.abs(actual - expected)).toBeLessThanOrEqual(8 * epsilon[dtype] * Math.abs(expected))
  for (const [i, x] of data.entries()) {
    within(y[i]!, x < 0 ? x - Math.log1p(Math.exp(x)) : -Math.log1p(Math.exp(-x)))
    within(dX[i]!, x < 0 ? 1 / (1 + Math.exp(x)) : Math.exp(-x) / (1 + Math.exp(-x))) // σ(−x)
  }
  expect(dX[data.indexOf(0)]).toBe(0.5)
})

it('a stopped gradient leaves the value alone', async () => {
  const { y, dX } = await evaluate([0.5, -2], (x) => mul(x, stopGradient(sigmoid(x))))
  const s = [0.5, -2].map((x) => 1 / (1 + Math.exp(-x)))
  expect(y[1]).toBeCloseTo(-2 * s[1]!, 14)
  expect(dX).toEqual(s.map((value) => expect.closeTo(value, 14)))
})

it('sort: ascending, and each gradient back to its place', async () => {
  const { y, dX } = await evaluate([3, -1, 2, 0.5], sort)
  expect(y).toEqual([-1, 0.5, 2, 3])
  // Ranks 4, 1, 3, 2 as gradients 4, 1, 3, 2
  expect(dX.map((d, i) => d * (i + 1))).toEqual([4, 1, 3, 2])
})
