// Gradients of standard ops against central differences in float64, over broadcast shapes.
import { describe, expect, it } from 'vitest'
import { backward } from '../../src/compiler/autodiff.js'
import { Graph, type Shape, type Value } from '../../src/compiler/graph.js'
import * as e from '../../src/compiler/ops/elementwise.js'
import { matMul, softmax } from '../../src/compiler/ops/linear-algebra.js'
import { reduceMax, reduceSum } from '../../src/compiler/ops/reduce.js'
import * as s from '../../src/compiler/ops/shape.js'
import { ints, scalar } from '../../src/compiler/ops/tensor.js'
import { randomSource } from '../ops/case.js'
import { runOracle, type Tensor } from '../ops/oracle.js'

interface Case {
  name: string
  shapes: number[][]
  /** Values are kept this far from zero and positive. */
  positive?: boolean
  build(values: Value[]): Value
}

const cases: Case[] = [
  { name: 'Add, broadcast', shapes: [[3, 4], [4]], build: ([a, b]) => e.add(a!, b!) },
  {
    name: 'Sub, broadcast both ways',
    shapes: [
      [3, 1],
      [1, 4],
    ],
    build: ([a, b]) => e.sub(a!, b!),
  },
  {
    name: 'Mul, broadcast',
    shapes: [
      [2, 3, 4],
      [3, 1],
    ],
    build: ([a, b]) => e.mul(a!, b!),
  },
  { name: 'Div, broadcast', shapes: [[3, 4], [4]], positive: true, build: ([a, b]) => e.div(a!, b!) },
  {
    name: 'Max and Min',
    shapes: [
      [3, 4],
      [3, 4],
    ],
    build: ([a, b]) => e.mul(e.max(a!, b!), e.min(a!, e.neg(b!))),
  },
  { name: 'Where', shapes: [[3, 4], [4]], build: ([a, b]) => e.where(e.greater(a!, b!), e.mul(a!, a!), b!) },
  { name: 'Exp, Log, Sqrt', shapes: [[5]], positive: true, build: ([a]) => e.exp(e.log(e.sqrt(a!))) },
  { name: 'Abs, Tanh, Sigmoid', shapes: [[7]], build: ([a]) => e.mul(e.abs(a!), e.tanh(e.sigmoid(a!))) },
  {
    name: 'MatMul',
    shapes: [
      [3, 4],
      [4, 5],
    ],
    build: ([a, b]) => matMul(a!, b!),
  },
  {
    name: 'MatMul, batch broadcast',
    shapes: [
      [2, 3, 4],
      [4, 5],
    ],
    build: ([a, b]) => matMul(a!, b!),
  },
  { name: 'Softmax', shapes: [[3, 5]], build: ([a]) => softmax(a!) },
  {
    name: 'ReduceSum, kept and dropped',
    shapes: [[3, 4, 2]],
    build: ([a]) => e.mul(reduceSum(a!, [1], true), reduceSum(a!, [0, 1])),
  },
  { name: 'ReduceMax', shapes: [[3, 4]], build: ([a]) => reduceMax(a!, [1]) },
  {
    name: 'Reshape, Transpose, Unsqueeze',
    shapes: [[3, 4]],
    build: ([a]) => s.unsqueeze(s.transpose(s.reshape(a!, [2, 6])), [1]),
  },
  {
    name: 'Slice, Pad, Concat',
    shapes: [
      [3, 5],
      [3, 2],
    ],
    build: ([a, b]) => s.concat([s.slice(a!, 1, 1, 4), s.padAxis(b!, 1, 1, 2)], 1),
  },
  { name: 'Gather with repeats', shapes: [[4, 3]], build: ([a]) => s.gather(a!, ints(a!.graph, [1, 3, 1])) },
  {
    name: 'Expand',
    shapes: [
      [3, 1],
      [3, 4],
    ],
    build: ([a, b]) => e.mul(s.expandLike(a!, b!), b!),
  },
]

async function check(c: Case): Promise<number> {
  const random = randomSource(5)
  const data = c.shapes.map((shape) =>
    Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => (c.positive ? 0.5 + random() : 2 * random() - 1)),
  )
  const trace = () => {
    const graph = new Graph({ kernels: false, floatType: 'f64' })
    const leaves = c.shapes.map((shape, i) => graph.leaf(`x${i}`, 'input', 'f64', shape as Shape))
    return { graph, leaves, y: c.build(leaves) }
  }
  const feed = (values: number[][]) =>
    Object.fromEntries(values.map((v, i) => [`x${i}`, { dtype: 'f64', shape: c.shapes[i]!, data: v } satisfies Tensor]))
  const weights = (n: number) => Array.from({ length: n }, (_, i) => Math.sin(i + 1))

  const { graph, leaves, y } = trace()
  const seed = graph.leaf('seed', 'input', 'f64', y.shape)
  for (const [leaf, d] of backward(graph, new Map([[y, seed]]), leaves))
    graph.output(`d.${leaf.leaf!.name}`, e.mul(d, scalar(graph, 1, 'f64')))
  const size = (y.shape as number[]).reduce((a, b) => a * b, 1)
  const analytic = await runOracle(graph, {
    ...feed(data),
    seed: { dtype: 'f64', shape: y.shape as number[], data: weights(size) },
  })

  const value = async (values: number[][]) => {
    const t = trace()
    t.graph.output('y', t.y)
    const out = (await runOracle(t.graph, feed(values))).y!
    return out.reduce((sum, x, i) => sum + x * weights(size)[i]!, 0)
  }
  let worst = 0
  for (const [k, values] of data.entries())
    for (const i of values.keys()) {
      const moved = (by: number) => data.map((v, j) => (j === k ? v.map((x, l) => (l === i ? x + by : x)) : v))
      const slope = ((await value(moved(1e-6))) - (await value(moved(-1e-6)))) / 2e-6
      worst = Math.max(worst, Math.abs(slope - analytic[`d.x${k}`]![i]!))
    }
  return worst
}

describe('gradients of standard ops', () => {
  it.each(cases.map((c) => [c.name, c] as const))('%s', async (_, c) => {
    expect(await check(c)).toBeLessThan(1e-8)
  })

  it('builds nothing for frozen leaves', () => {
    const g = new Graph({ kernels: false, floatType: 'f64' })
    const x = g.leaf('x', 'parameter', 'f64', [2, 3])
    const w = g.leaf('w', 'weight', 'f64', [3, 4])
    const y = matMul(x, w)
    const before = g.nodes.length
    const d = backward(g, new Map([[y, g.leaf('seed', 'input', 'f64', [2, 4])]]), [x])
    expect([...d.keys()]).toEqual([x])
    expect(g.nodes.slice(before).map((n) => n.op.opType)).toEqual(['Transpose', 'MatMul'])
  })

  it('names the op that has no gradient', () => {
    const g = new Graph({ kernels: false, floatType: 'f64' })
    const x = g.leaf('x', 'parameter', 'f64', [2])
    const y = e.cos(x)
    expect(() => backward(g, new Map([[y, g.leaf('seed', 'input', 'f64', [2])]]), [x])).toThrow(/Cos has no gradient/)
  })
})
