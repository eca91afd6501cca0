// A segment as ONNX bytes. The only door to onnx-buf and its protobuf runtime.
import { create, toBinary } from '@bufbuild/protobuf'
import {
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  GraphProtoSchema,
  ModelProtoSchema,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  TensorProtoSchema,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  ValueInfoProtoSchema,
} from 'onnx-buf'
import { bytesOf, type DType, onnxElementType, type TensorType, type Value } from './graph.js'
import type { AttributeValue, ConstantTensor } from './op.js'
import { Constant } from './ops/tensor.js'
import { canonicalNames, emittedOpType, readValues, type Segment } from './segment.js'

const IR_VERSION = 10n
const OPSET = 21n

/** A node of a model as the model names it and its values; '' is an optional value that is absent. */
export interface EmittedNode {
  readonly name: string
  readonly inputs: readonly string[]
  readonly outputs: readonly string[]
}

export interface EmittedModel {
  readonly bytes: Uint8Array
  /** All of the model's nodes, in order, where they are our operators and need no constants; else null. */
  readonly nodes: readonly EmittedNode[] | null
}

export function emitSegment(segment: Segment): EmittedModel {
  const names = canonicalNames(segment)
  const read = readValues(segment)
  const order = new Map(segment.nodes.map((n, i) => [n, i]))
  const name = (value: Value | null) => {
    if (!value) return ''
    const known = names.get(value)
    if (known === undefined) throw new Error(`segment ${segment.name}: value ${value.id} is read but not there`)
    return known
  }
  const info = (value: Value) => create(ValueInfoProtoSchema, { name: name(value), type: typeProto(value) })
  const constants = segment.nodes.filter((n) => n.op === Constant)
  const nodes = segment.nodes
    .filter((n) => n.op !== Constant)
    .map((node) => {
      const inputs = node.inputs.map(name)
      while (inputs.at(-1) === '') inputs.pop()
      // Standard ops must name what nobody reads; our kernels skip it.
      // Of our operators the first output is always there; the others may be left out
      const outputs = node.outputs.map((y, i) => (i === 0 || read.has(y) || node.op.domain === '' ? name(y) : ''))
      while (outputs.at(-1) === '') outputs.pop()
      return create(NodeProtoSchema, {
        opType: emittedOpType(node),
        domain: node.op.domain,
        name: `n${order.get(node)}`,
        input: inputs,
        output: outputs,
        attribute: Object.entries(node.attributes)
          .filter(([key]) => !node.op.hidden?.includes(key))
          .map(([key, value]) => attribute(key, value as AttributeValue)),
      })
    })
  const model = create(ModelProtoSchema, {
    irVersion: IR_VERSION,
    producerName: 'espalier',
    opsetImport: [
      create(OperatorSetIdProtoSchema, { domain: '', version: OPSET }),
      create(OperatorSetIdProtoSchema, { domain: 'com.microsoft', version: 1n }),
      create(OperatorSetIdProtoSchema, { domain: 'espalier', version: 1n }),
    ],
    graph: create(GraphProtoSchema, {
      name: 'segment',
      node: nodes,
      input: segment.inputs.map(info),
      output: segment.outputs.map(info),
      initializer: constants.map((n) => tensor(name(n.outputs[0]!), n.attributes.value as ConstantTensor)),
      valueInfo: segment.nodes
        .filter((n) => n.op !== Constant)
        .flatMap((n) => n.outputs.filter((y) => read.has(y) && !segment.outputs.includes(y)).map(info)),
    }),
  })
  const isOurs = constants.length === 0 && nodes.every((n) => n.domain === 'espalier')
  return {
    bytes: toBinary(ModelProtoSchema, model),
    nodes: isOurs ? nodes.map(({ name, input, output }) => ({ name, inputs: input, outputs: output })) : null,
  }
}

function typeProto(type: TensorType) {
  return create(TypeProtoSchema, {
    value: {
      case: 'tensorType',
      value: create(TypeProto_TensorSchema, {
        elemType: onnxElementType[type.dtype],
        shape: create(TensorShapeProtoSchema, {
          dim: type.shape.map((d) =>
            create(TensorShapeProto_DimensionSchema, {
              value: typeof d === 'string' ? { case: 'dimParam', value: d } : { case: 'dimValue', value: BigInt(d) },
            }),
          ),
        }),
      }),
    },
  })
}

function attribute(key: string, value: AttributeValue) {
  if (typeof value === 'number')
    return create(AttributeProtoSchema, { name: key, type: AttributeProto_AttributeType.INT, i: BigInt(value) })
  if (typeof value === 'string' && key === 'to')
    return create(AttributeProtoSchema, {
      name: key,
      type: AttributeProto_AttributeType.INT,
      i: BigInt(onnxElementType[value as DType]),
    })
  if (typeof value === 'string')
    return create(AttributeProtoSchema, {
      name: key,
      type: AttributeProto_AttributeType.STRING,
      s: new TextEncoder().encode(value),
    })
  if (Array.isArray(value))
    return create(AttributeProtoSchema, {
      name: key,
      type: AttributeProto_AttributeType.INTS,
      ints: (value as number[]).map((x) => BigInt(x)),
    })
  if ('real' in value)
    return create(AttributeProtoSchema, { name: key, type: AttributeProto_AttributeType.FLOAT, f: value.real })
  throw new Error(`attribute ${key} cannot be emitted`)
}

function tensor(name: string, { type, data }: ConstantTensor) {
  const raw = new DataView(new ArrayBuffer(data.length * bytesOf[type.dtype]))
  const write: Partial<Record<DType, (at: number, x: number) => void>> = {
    f32: (at, x) => raw.setFloat32(at, x, true),
    f64: (at, x) => raw.setFloat64(at, x, true),
    i64: (at, x) => raw.setBigInt64(at, BigInt(x), true),
    i32: (at, x) => raw.setInt32(at, x, true),
    u8: (at, x) => raw.setUint8(at, x),
    i8: (at, x) => raw.setInt8(at, x),
    bool: (at, x) => raw.setUint8(at, x),
  }
  const put = write[type.dtype]
  if (!put) throw new Error(`a constant of type ${type.dtype} cannot be emitted`)
  for (const [i, x] of data.entries()) put(i * bytesOf[type.dtype], x)
  return create(TensorProtoSchema, {
    name,
    dataType: onnxElementType[type.dtype],
    dims: type.shape.map((d) => BigInt(d)),
    rawData: new Uint8Array(raw.buffer),
  })
}
