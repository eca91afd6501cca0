// Small ONNX models written by hand, for tests of the runtime alone.
import { create, toBinary } from '@bufbuild/protobuf'
import {
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  GraphProtoSchema,
  ModelProtoSchema,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  ValueInfoProtoSchema,
} from 'onnx-buf'
import type { DType, ProgramModel } from '../../src/runtime/types.js'

const elementType: Record<DType, number> = { f32: 1, u8: 2, i8: 3, i32: 6, i64: 7, bool: 9, f16: 10, f64: 11, bf16: 16 }

export interface TestNode {
  op: string
  /** `espalier` unless given. */
  domain?: string
  inputs: string[]
  outputs: string[]
  ints?: Record<string, number>
  floats?: Record<string, number>
}
export type TestValue = [name: string, dtype: DType, shape: (number | string)[]]

/** A graph as ONNX, for ONNX Runtime to run. */
export function model(inputs: TestValue[], outputs: TestValue[], nodes: TestNode[]): ProgramModel {
  const value = ([name, dtype, shape]: TestValue) =>
    create(ValueInfoProtoSchema, {
      name,
      type: create(TypeProtoSchema, {
        value: {
          case: 'tensorType',
          value: create(TypeProto_TensorSchema, {
            elemType: elementType[dtype],
            shape: create(TensorShapeProtoSchema, {
              dim: shape.map((dim) =>
                create(TensorShapeProto_DimensionSchema, {
                  value:
                    typeof dim === 'string'
                      ? { case: 'dimParam', value: dim }
                      : { case: 'dimValue', value: BigInt(dim) },
                }),
              ),
            }),
          }),
        },
      }),
    })
  const graph = create(GraphProtoSchema, {
    name: 'test',
    input: inputs.map(value),
    output: outputs.map(value),
    node: nodes.map((node, i) =>
      create(NodeProtoSchema, {
        name: `n${i}`,
        opType: node.op,
        domain: node.domain ?? 'espalier',
        input: node.inputs,
        output: node.outputs,
        attribute: [
          ...Object.entries(node.ints ?? {}).map(([name, n]) =>
            create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.INT, i: BigInt(n) }),
          ),
          ...Object.entries(node.floats ?? {}).map(([name, f]) =>
            create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.FLOAT, f }),
          ),
        ],
      }),
    ),
  })
  const proto = create(ModelProtoSchema, {
    irVersion: 10n,
    opsetImport: [
      create(OperatorSetIdProtoSchema, { domain: '', version: 21n }),
      create(OperatorSetIdProtoSchema, { domain: 'com.microsoft', version: 1n }),
      create(OperatorSetIdProtoSchema, { domain: 'espalier', version: 1n }),
    ],
    graph,
  })
  return { bytes: toBinary(ModelProtoSchema, proto) }
}

/** The same, to run without ONNX Runtime between the nodes. */
export function sequence(inputs: TestValue[], outputs: TestValue[], nodes: TestNode[]): ProgramModel {
  return { ...model(inputs, outputs, nodes), nodes: nodes.map((n, i) => ({ ...n, name: `n${i}` })) }
}

/** One standard node z = x op y, all `[N, width]`. */
export function binary(op: string, width: number, dtype: DType = 'f32'): ProgramModel {
  return model(
    [
      ['x', dtype, ['N', width]],
      ['y', dtype, ['N', width]],
    ],
    [['z', dtype, ['N', width]]],
    [{ op, domain: '', inputs: ['x', 'y'], outputs: ['z'] }],
  )
}
