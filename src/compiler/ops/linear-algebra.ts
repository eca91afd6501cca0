// Matrix products and softmax.
import type { Dim, Value } from '../graph.js'
import { defineOp } from '../op.js'
import { mul, sub } from './elementwise.js'
import { reduceSum, reduceTo } from './reduce.js'
import { transpose } from './shape.js'
import { broadcast, need } from './shape-rules.js'

const swapLast = (x: Value): Value => {
  const order = x.shape.map((_, i) => i)
  const n = order.length
  ;[order[n - 1], order[n - 2]] = [order[n - 2]!, order[n - 1]!]
  return transpose(x, order)
}

export const MatMul = defineOp<Record<string, never>>({
  opType: 'MatMul',
  domain: '',
  infer([a, b]) {
    const x = need(a, 'MatMul a')
    const y = need(b, 'MatMul b')
    if (x.shape.at(-1) !== y.shape.at(-2))
      throw new Error(`MatMul: [${x.shape.join(', ')}] by [${y.shape.join(', ')}]: inner sizes differ`)
    const batch = broadcast(x.shape.slice(0, -2), y.shape.slice(0, -2), 'MatMul')
    return [{ dtype: x.dtype, shape: [...batch, x.shape.at(-2) as Dim, y.shape.at(-1) as Dim] }]
  },
  // dA = dY Bᵀ, dB = Aᵀ dY
  gradient(c) {
    const [a, b] = c.node.inputs as [Value, Value]
    const dY = c.dOutputs[0]!
    return [
      c.needs(0) ? reduceTo(matMul(dY, swapLast(b)), a.shape) : null,
      c.needs(1) ? reduceTo(matMul(swapLast(a), dY), b.shape) : null,
    ]
  },
  flops(node, dims) {
    const [a] = node.inputs as [Value, Value]
    const y = node.outputs[0]!
    const size = (d: Dim | undefined) => (typeof d === 'string' ? (dims[d] ?? 1) : (d ?? 1))
    return 2 * y.shape.reduce<number>((n, d) => n * size(d), 1) * size(a.shape.at(-1))
  },
})
export const matMul = (a: Value, b: Value): Value => a.graph.apply(MatMul, [a, b], {})[0]!

export const Softmax = defineOp<{ axis: number }>({
  opType: 'Softmax',
  domain: '',
  infer: ([x]) => [need(x, 'Softmax')],
  // dX = P ∘ (dP − Σ P ∘ dP)
  gradient(c) {
    const p = c.node.outputs[0]!
    const dP = c.dOutputs[0]!
    const { axis } = c.node.attributes as { axis: number }
    return [mul(p, sub(dP, reduceSum(mul(p, dP), [axis], true)))]
  },
})
export const softmax = (x: Value, axis = -1): Value => x.graph.apply(Softmax, [x], { axis })[0]!
export const transposeLast = swapLast
