// Rotary position embedding (arXiv 2104.09864) and the activation ops SwiGlu, Convert.
import { type DType, sizeWith, type Value } from '../graph.js'
import { defineOp, type OpDefinition } from '../op.js'
import { add, cast, mul, neg, sigmoid, sub } from './elementwise.js'
import { concat, reshape, slice, unsqueeze } from './shape.js'
import { need, staticDim } from './shape-rules.js'

type RotaryAttributes = { head_dim: number; interleaved: number; inverse: number }

export const Rotary: OpDefinition<RotaryAttributes> = defineOp<RotaryAttributes>({
  opType: 'Rotary',
  domain: 'espalier',
  activationInputs: [0],
  activationOutputs: [0],
  infer: ([x]) => [need(x, 'Rotary x')],
  // [a, b] -> [a cos − b sin, b cos + a sin] for the two halves (or the even and odd entries) of each head
  lower(g, [x, cos_, sin_], { head_dim, interleaved, inverse }) {
    const heads = staticDim(x!.shape.at(-1), 'Rotary x') / head_dim
    const half = head_dim / 2
    const n = x!.shape[0]!
    const cosine = unsqueeze(cast(cos_!, g.floatType), [1])
    const sine = unsqueeze(inverse ? neg(cast(sin_!, g.floatType)) : cast(sin_!, g.floatType), [1])
    const rotate = (a: Value, b: Value): [Value, Value] => [
      sub(mul(a, cosine), mul(b, sine)),
      add(mul(b, cosine), mul(a, sine)),
    ]
    if (interleaved) {
      const pairs = reshape(x!, [n, heads * half, 2])
      const part = (i: number) => reshape(slice(pairs, 2, i, i + 1), [n, heads, half])
      const turned = rotate(part(0), part(1)).map((y) => reshape(y, [n, heads * half, 1]))
      return [reshape(concat(turned, 2), x!.shape)]
    }
    const split = reshape(x!, [n, heads, head_dim])
    return [reshape(concat(rotate(slice(split, 2, 0, half), slice(split, 2, half, head_dim)), 2), x!.shape)]
  },
  // A rotation's transpose is the rotation back.
  gradient(c) {
    const a = c.node.attributes as RotaryAttributes
    const turned: Value[] = c.graph.apply(Rotary, [c.dOutputs[0]!, c.node.inputs[1]!, c.node.inputs[2]!], {
      ...a,
      inverse: 1 - a.inverse,
    })
    return [turned[0]!, null, null]
  },
  flops: (node, dims) => 4 * sizeWith(node.outputs[0]!.shape, dims),
})

/** x [N, H·Dh] rotated by cos, sin [N, Dh/2]. */
export function rotary(x: Value, cosine: Value, sine: Value, headDim: number): Value {
  return x.graph.apply(Rotary, [x, cosine, sine], { head_dim: headDim, interleaved: 0, inverse: 0 })[0]!
}

export const SwiGlu = defineOp<Record<string, never>>({
  opType: 'SwiGlu',
  domain: 'espalier',
  activationInputs: [0, 1],
  activationOutputs: [0],
  infer: ([gate]) => [need(gate, 'SwiGlu gate')],
  // y = gate σ(gate) up
  lower: (_, [gate, up]) => [mul(mul(gate!, sigmoid(gate!)), up!)],
  gradient(c) {
    const [gate, up] = c.node.inputs as [Value, Value]
    return c.graph.apply(SwiGluGrad, [gate, up, c.dOutputs[0]!], {})
  },
  flops: (node, dims) => 8 * sizeWith(node.outputs[0]!.shape, dims),
})

// dGate = dY up σ(g)(1 + g(1 − σ(g))), dUp = dY g σ(g)
export const SwiGluGrad = defineOp<Record<string, never>>({
  opType: 'SwiGluGrad',
  domain: 'espalier',
  activationInputs: [0, 1, 2],
  activationOutputs: [0, 1],
  infer: ([gate, up]) => [need(gate, 'SwiGluGrad'), need(up, 'SwiGluGrad')],
  gradient: 'unsupported',
  flops: (node, dims) => 16 * sizeWith(node.outputs[0]!.shape, dims),
})

/** silu(gate) ∘ up, both [N, F] (arXiv 2002.05202). */
export function swiGlu(gate: Value, up: Value): Value {
  return gate.graph.apply(SwiGlu, [gate, up], {})[0]!
}

export const Convert = defineOp<{ out: DType }>({
  opType: 'Convert',
  domain: 'espalier',
  activationInputs: [0],
  hidden: ['out'],
  activationOutputs: [0],
  infer: ([x], { out }) => [{ dtype: out, shape: need(x, 'Convert').shape }],
  lower: (_, [x], { out }) => [cast(x!, out)],
  gradient: (c) => [convert(c.dOutputs[0]!, c.node.inputs[0]!.dtype)],
})

/** f32 <-> bf16, rounding to nearest even. */
export function convert(x: Value, out: DType): Value {
  return x.dtype === out ? x : x.graph.apply(Convert, [x], { out })[0]!
}
