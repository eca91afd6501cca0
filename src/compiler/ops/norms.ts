// RmsNorm (arXiv 1910.07467) over groups of the last dimension, as long as its weight.
import { type DType, sizeWith, type TensorType, type Value } from '../graph.js'
import { defineOp, type RealNumber, real } from '../op.js'
import { add, cast, div, mul, sqrt } from './elementwise.js'
import { reduceMean } from './reduce.js'
import { reshape } from './shape.js'
import { need, staticDim } from './shape-rules.js'
import { scalar } from './tensor.js'

type NormAttributes = { eps: RealNumber; out: DType }

export const RmsNorm = defineOp<NormAttributes>({
  opType: 'RmsNorm',
  domain: 'espalier',
  activationInputs: [0],
  hidden: ['out'],
  activationOutputs: [0],
  infer: ([x], { out }) => [{ dtype: out, shape: need(x, 'RmsNorm x').shape }],
  // y = w ∘ x / √(mean x² + eps)
  lower(g, [x, weight], { eps }) {
    const size = staticDim(weight!.shape[0], 'RmsNorm weight')
    const width = staticDim(x!.shape.at(-1), 'RmsNorm x')
    const groups = reshape(x!, [x!.shape[0]!, width / size, size])
    const mean = reduceMean(mul(groups, groups), 2, scalar(g, size, g.floatType))
    const normed = div(groups, sqrt(add(mean, scalar(g, eps.real, g.floatType))))
    return [reshape(mul(normed, cast(weight!, g.floatType)), x!.shape)]
  },
  gradient(c) {
    const [x, weight] = c.node.inputs as [Value, Value]
    if (c.needs(1)) throw new Error('RmsNorm: the gradient of its weight is not supported; norms are frozen')
    if (!c.needs(0)) return [null, null]
    const partial = c.takePartial(0)
    const out: DType = c.uses(0) > 1 || x.dtype === 'f32' ? 'f32' : x.dtype
    return [
      c.graph.apply(RmsNormGrad, [x, weight, c.dOutputs[0]!, partial], {
        eps: (c.node.attributes as NormAttributes).eps,
        out,
      })[0]!,
      null,
    ]
  },
  flops: (node, dims) => 4 * sizeWith(node.outputs[0]!.shape, dims),
})

// dX = dXin + r (w∘dY − x̂ mean(x̂ ∘ w ∘ dY)), r = 1/rms, x̂ = r x
export const RmsNormGrad = defineOp<NormAttributes>({
  opType: 'RmsNormGrad',
  domain: 'espalier',
  activationInputs: [0, 2],
  hidden: ['out'],
  activationOutputs: [0],
  infer: ([x], { out }): TensorType[] => [{ dtype: out, shape: need(x, 'RmsNormGrad x').shape }],
  gradient: 'unsupported',
  flops: (node, dims) => 8 * sizeWith(node.outputs[0]!.shape, dims),
})

/** x [N, D] (or heads of weight's size side by side) -> same shape, in the activation type. */
export function rmsNorm(x: Value, weight: Value, eps: number): Value {
  return x.graph.apply(RmsNorm, [x, weight], { eps: real(eps), out: x.graph.activationType })[0]!
}
