// Standard elementwise ONNX ops with broadcasting, and their gradients.
import type { DType, Value } from '../graph.js'
import { sameShape } from '../graph.js'
import { defineOp, type GradientRule, type OpDefinition } from '../op.js'
import { reduceTo } from './reduce.js'
import { broadcast, need } from './shape-rules.js'
import { scalar } from './tensor.js'

type Plain = Record<string, never>

function binary(opType: string, gradient: GradientRule | 'stops', result?: DType): OpDefinition<Plain> {
  return defineOp<Plain>({
    opType,
    domain: '',
    infer([a, b]) {
      const x = need(a, `${opType} a`)
      const y = need(b, `${opType} b`)
      if (x.dtype !== y.dtype) throw new Error(`${opType}: types ${x.dtype} and ${y.dtype} differ; cast one of them`)
      return [{ dtype: result ?? x.dtype, shape: broadcast(x.shape, y.shape, opType) }]
    },
    gradient,
  })
}

function unary(opType: string, gradient: GradientRule | 'stops' | 'unsupported'): OpDefinition<Plain> {
  return defineOp<Plain>({ opType, domain: '', infer: ([x]) => [need(x, opType)], gradient })
}

/** The gradient of a broadcast input: `build` gives it at the output's shape. */
const to = (context: Parameters<GradientRule>[0], input: number, build: () => Value): Value | null =>
  context.needs(input) ? reduceTo(build(), context.node.inputs[input]!.shape) : null

export const Add = binary('Add', (c) => [to(c, 0, () => c.dOutputs[0]!), to(c, 1, () => c.dOutputs[0]!)])
export const Sub = binary('Sub', (c) => [to(c, 0, () => c.dOutputs[0]!), to(c, 1, () => neg(c.dOutputs[0]!))])
// d(ab) = b da + a db
export const Mul = binary('Mul', (c) => {
  const [a, b] = c.node.inputs as [Value, Value]
  return [to(c, 0, () => mul(c.dOutputs[0]!, b)), to(c, 1, () => mul(c.dOutputs[0]!, a))]
})
// d(a/b) = da/b − (a/b)/b db
export const Div = binary('Div', (c) => {
  const [, b] = c.node.inputs as [Value, Value]
  const y = c.node.outputs[0]!
  return [to(c, 0, () => div(c.dOutputs[0]!, b)), to(c, 1, () => neg(div(mul(c.dOutputs[0]!, y), b)))]
})
export const Pow = binary('Pow', 'stops')
// Ties give the whole gradient to the first input.
export const Max = binary('Max', (c) => {
  const [a, b] = c.node.inputs as [Value, Value]
  const first = cast(greaterOrEqual(a, b), a.dtype)
  return [
    to(c, 0, () => mul(c.dOutputs[0]!, first)),
    to(c, 1, () => mul(c.dOutputs[0]!, sub(scalar(a.graph, 1, a.dtype), first))),
  ]
})
export const Min = binary('Min', (c) => {
  const [a, b] = c.node.inputs as [Value, Value]
  const first = cast(greaterOrEqual(b, a), a.dtype)
  return [
    to(c, 0, () => mul(c.dOutputs[0]!, first)),
    to(c, 1, () => mul(c.dOutputs[0]!, sub(scalar(a.graph, 1, a.dtype), first))),
  ]
})
export const Greater = binary('Greater', 'stops', 'bool')
export const GreaterOrEqual = binary('GreaterOrEqual', 'stops', 'bool')
export const Less = binary('Less', 'stops', 'bool')
export const Equal = binary('Equal', 'stops', 'bool')
export const And = binary('And', 'stops', 'bool')
export const BitwiseAnd = binary('BitwiseAnd', 'stops')
export const BitwiseXor = binary('BitwiseXor', 'stops')
export const Mod = defineOp<{ fmod: number }>({
  opType: 'Mod',
  domain: '',
  infer: ([a, b]) => [{ ...need(a, 'Mod'), shape: broadcast(need(a, 'Mod').shape, need(b, 'Mod').shape, 'Mod') }],
  gradient: 'stops',
})
export const BitShift = defineOp<{ direction: string }>({
  opType: 'BitShift',
  domain: '',
  infer: ([a]) => [need(a, 'BitShift')],
  gradient: 'stops',
})

export const Neg = unary('Neg', (c) => [neg(c.dOutputs[0]!)])
export const Abs = unary('Abs', (c) => [mul(c.dOutputs[0]!, sign(c.node.inputs[0]!))])
export const Sign = unary('Sign', 'stops')
// d(e^x) = e^x dx
export const Exp = unary('Exp', (c) => [mul(c.dOutputs[0]!, c.node.outputs[0]!)])
// d(log x) = dx / x
export const Log = unary('Log', (c) => [div(c.dOutputs[0]!, c.node.inputs[0]!)])
// d(√x) = dx / 2√x
export const Sqrt = unary('Sqrt', (c) => {
  const y = c.node.outputs[0]!
  return [div(mul(c.dOutputs[0]!, scalar(y.graph, 0.5, y.dtype)), y)]
})
export const Cos = unary('Cos', 'unsupported')
export const Sin = unary('Sin', 'unsupported')
// d(tanh x) = (1 − tanh²x) dx
export const Tanh = unary('Tanh', (c) => {
  const y = c.node.outputs[0]!
  return [mul(c.dOutputs[0]!, sub(scalar(y.graph, 1, y.dtype), mul(y, y)))]
})
// d(σ) = σ(1 − σ) dx
export const Sigmoid = unary('Sigmoid', (c) => {
  const y = c.node.outputs[0]!
  return [mul(c.dOutputs[0]!, mul(y, sub(scalar(y.graph, 1, y.dtype), y)))]
})
/** The value without its gradient. */
export const Identity = unary('Identity', 'stops')

export const Where = defineOp<Plain>({
  opType: 'Where',
  domain: '',
  infer([condition, a, b]) {
    const x = need(a, 'Where a')
    const shape = broadcast(
      broadcast(need(condition, 'Where').shape, x.shape, 'Where'),
      need(b, 'Where b').shape,
      'Where',
    )
    return [{ dtype: x.dtype, shape }]
  },
  gradient(c) {
    const condition = c.node.inputs[0]!
    const zero = scalar(condition.graph, 0, c.dOutputs[0]!.dtype)
    return [
      null,
      to(c, 1, () => where(condition, c.dOutputs[0]!, zero)),
      to(c, 2, () => where(condition, zero, c.dOutputs[0]!)),
    ]
  },
})

export const Cast = defineOp<{ to: DType }>({
  opType: 'Cast',
  domain: '',
  infer: ([x], { to: dtype }) => [{ dtype, shape: need(x, 'Cast').shape }],
  gradient: (c) => [cast(c.dOutputs[0]!, c.node.inputs[0]!.dtype)],
})

export const add = (a: Value, b: Value): Value => a.graph.apply(Add, [a, b], {})[0]!
export const sub = (a: Value, b: Value): Value => a.graph.apply(Sub, [a, b], {})[0]!
export const mul = (a: Value, b: Value): Value => a.graph.apply(Mul, [a, b], {})[0]!
export const div = (a: Value, b: Value): Value => a.graph.apply(Div, [a, b], {})[0]!
export const max = (a: Value, b: Value): Value => a.graph.apply(Max, [a, b], {})[0]!
export const min = (a: Value, b: Value): Value => a.graph.apply(Min, [a, b], {})[0]!
export const mod = (a: Value, b: Value): Value => a.graph.apply(Mod, [a, b], { fmod: 0 })[0]!
export const pow = (a: Value, b: Value): Value => a.graph.apply(Pow, [a, b], {})[0]!
export const greater = (a: Value, b: Value): Value => a.graph.apply(Greater, [a, b], {})[0]!
export const greaterOrEqual = (a: Value, b: Value): Value => a.graph.apply(GreaterOrEqual, [a, b], {})[0]!
export const less = (a: Value, b: Value): Value => a.graph.apply(Less, [a, b], {})[0]!
export const equal = (a: Value, b: Value): Value => a.graph.apply(Equal, [a, b], {})[0]!
export const and = (a: Value, b: Value): Value => a.graph.apply(And, [a, b], {})[0]!
export const bitwiseAnd = (a: Value, b: Value): Value => a.graph.apply(BitwiseAnd, [a, b], {})[0]!
export const bitwiseXor = (a: Value, b: Value): Value => a.graph.apply(BitwiseXor, [a, b], {})[0]!
export const shiftRight = (a: Value, b: Value): Value => a.graph.apply(BitShift, [a, b], { direction: 'RIGHT' })[0]!
export const neg = (x: Value): Value => x.graph.apply(Neg, [x], {})[0]!
export const abs = (x: Value): Value => x.graph.apply(Abs, [x], {})[0]!
export const sign = (x: Value): Value => x.graph.apply(Sign, [x], {})[0]!
export const exp = (x: Value): Value => x.graph.apply(Exp, [x], {})[0]!
export const log = (x: Value): Value => x.graph.apply(Log, [x], {})[0]!
export const sqrt = (x: Value): Value => x.graph.apply(Sqrt, [x], {})[0]!
export const cos = (x: Value): Value => x.graph.apply(Cos, [x], {})[0]!
export const sin = (x: Value): Value => x.graph.apply(Sin, [x], {})[0]!
/** The same value, through which no gradient flows. */
export const stopGradient = (x: Value): Value => x.graph.apply(Identity, [x], {})[0]!
export const tanh = (x: Value): Value => x.graph.apply(Tanh, [x], {})[0]!
export const sigmoid = (x: Value): Value => x.graph.apply(Sigmoid, [x], {})[0]!
export const where = (condition: Value, a: Value, b: Value): Value => a.graph.apply(Where, [condition, a, b], {})[0]!
export const cast = (x: Value, dtype: DType): Value =>
  x.dtype === dtype ? x : x.graph.apply(Cast, [x], { to: dtype })[0]!

/** Multiplies by a number. */
export const scale = (x: Value, factor: number): Value => (factor === 1 ? x : mul(x, scalar(x.graph, factor, x.dtype)))
/** Adds a number. */
export const shift = (x: Value, by: number): Value => (by === 0 ? x : add(x, scalar(x.graph, by, x.dtype)))
export const square = (x: Value): Value => mul(x, x)

/** log(1 + x) for x ≥ 0, to the last digits where x is small too; likewise its gradient. */
export function log1p(x: Value): Value {
  const s = shift(x, 1)
  // s is rounded by δ = x − (s − 1), and log(s + δ) = log s + δ/s up to δ²
  return add(log(s), stopGradient(div(sub(x, shift(s, -1)), s)))
}

/** log σ(x) = min(x, 0) − log(1 + e^(−|x|)): no overflow, and ½ as the slope at 0. */
export function logSigmoid(x: Value): Value {
  const low = min(x, scalar(x.graph, 0, x.dtype))
  return sub(low, log1p(exp(sub(scale(low, 2), x)))) // −|x| = 2 min(x, 0) − x, exactly
}

/** Adds up gradients; null stands for zero. */
export function sum(a: Value | null, b: Value | null): Value | null {
  if (!a || !b) return a ?? b
  if (!sameShape(a.shape, b.shape)) throw new Error('gradients of one value differ in shape')
  return add(a, b)
}
