// QuantLinearGroup: several linears of one input in the decode role, as one node: few rows are rounded once, and the
// columns of all of them are one run of work. Made by the compiler where the grouping rule allows it.
import { type Node, sizeWith, type Value } from '../graph.js'
import { defineOp, type GroupingRule, type OpDefinition } from '../op.js'
import { absorbPrologue, hasByteProducts } from './linear-prologue.js'
import type { LinearAttributes } from './quant-linear.js'
import { need } from './shape-rules.js'
import { weightOf } from './weight.js'

type GroupAttributes = LinearAttributes & { members: number }

/** x, arena, rowSlot, what the prologue takes beside x; then per member W0..W3, bias, slot table. */
const SHARED = 4
const PER_MEMBER = 6
const MOST = 4

/** The group of linears that `linear` defines; the two records name each other. */
export function defineLinearGroup(linear: () => OpDefinition<LinearAttributes>): {
  readonly op: OpDefinition<GroupAttributes>
  readonly grouping: GroupingRule
} {
  const membersOf = (inputs: readonly (Value | null)[], attributes: GroupAttributes) => {
    const { members, ...own } = attributes
    return Array.from({ length: members }, (_, m) => {
      const [w0 = null, w1 = null, w2 = null, w3 = null, bias = null, table = null] = inputs.slice(
        SHARED + m * PER_MEMBER,
        SHARED + (m + 1) * PER_MEMBER,
      )
      const [x, arena, rowSlot, beside] = inputs
      const linearInputs = [x!, w0, w1, w2, w3, bias, arena!, table, rowSlot!, null, null, null, beside!]
      return { inputs: linearInputs, attributes: own }
    })
  }
  const op = defineOp<GroupAttributes>({
    opType: 'QuantLinearGroup',
    domain: 'espalier',
    hidden: ['out'],
    activationInputs: [0],
    activationOutputs: [0, 1, 2, 3],
    infer: ([x, , , , ...rest], attributes) =>
      Array.from({ length: attributes.members }, (_, m) => ({
        dtype: attributes.out,
        shape: [need(x, 'QuantLinearGroup x').shape[0]!, weightOf(rest, attributes, m * PER_MEMBER).outFeatures],
      })),
    gradient: 'unsupported',
    absorb: (node, producer) => absorbPrologue(node, producer, SHARED - 1, SHARED),
    lower: (g, inputs, attributes) =>
      membersOf(inputs, attributes).map((member) => g.apply(linear(), member.inputs, member.attributes)[0]!),
    flops: (node, dims) =>
      membersOf(node.inputs, node.attributes as GroupAttributes).reduce((n, member) => {
        const { outFeatures, inFeatures } = weightOf(member.inputs, member.attributes, 1)
        return n + 2 * sizeWith([node.inputs[0]!.shape[0]!], dims) * outFeatures * inFeatures
      }, 0),
  })
  const grouping: GroupingRule = {
    most: MOST,
    key({ inputs, attributes, outputs }: Node) {
      const a = attributes as LinearAttributes
      const [, , , , , , arena, , rowSlot, rowWeight, adapterX, residual] = inputs
      if (!hasByteProducts(inputs, a, 1) || rowWeight || adapterX || residual) return null
      return JSON.stringify([a, outputs[0]!.dtype, inputs[1]!.shape[1], arena?.id, rowSlot?.id])
    },
    group(nodes) {
      const [{ inputs, attributes }] = nodes as [Node]
      const members = nodes.flatMap((node) => [...node.inputs.slice(1, 6), node.inputs[7] ?? null])
      return {
        op,
        inputs: [inputs[0]!, inputs[6] ?? null, inputs[8] ?? null, null, ...members],
        attributes: { ...attributes, members: nodes.length },
      }
    },
  }
  return { op, grouping }
}
