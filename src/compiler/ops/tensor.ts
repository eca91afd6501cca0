// Constants.
import type { DType, Graph, Shape, Value } from '../graph.js'
import { type ConstantTensor, defineOp } from '../op.js'

export const Constant = defineOp<{ value: ConstantTensor }>({
  opType: 'Constant',
  domain: '',
  infer: (_, { value }) => [value.type],
  gradient: 'stops',
})

export function constant(graph: Graph, data: readonly number[], shape: Shape, dtype: DType): Value {
  return graph.apply(Constant, [], { value: { type: { dtype, shape }, data } })[0]!
}

export function scalar(graph: Graph, value: number, dtype: DType): Value {
  return constant(graph, [value], [], dtype)
}

export function ints(graph: Graph, data: readonly number[]): Value {
  return constant(graph, data, [data.length], 'i64')
}
