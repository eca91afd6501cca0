// The same interface over stock onnxruntime-node: what a machine without our addon runs.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { openRuntime } from '../../src/runtime/index.js'
import type { Binding, DeviceBuffer, DType, ProgramModel, Runtime } from '../../src/runtime/types.js'
import { binary, model } from './models.js'
import { floats } from './probe.js'

let runtime: Runtime
let folder: string
beforeAll(async () => {
  runtime = await openRuntime({ kernels: false })
  folder = mkdtempSync(join(tmpdir(), 'espalier-stock-'))
})
afterAll(async () => {
  await runtime.close()
  await expect(runtime.createProgram({ models: [], dims: [], steps: [] })).rejects.toThrow('closed')
  rmSync(folder, { recursive: true })
})

const at = (buffer: DeviceBuffer, shape: (number | string)[], dtype: DType = 'f32', byteOffset = 0): Binding => ({
  buffer,
  byteOffset,
  dtype,
  shape,
})

test('says why it is in use', () => {
  expect(runtime.info).toMatchObject({
    kernels: false,
    provider: 'cpu',
    isa: null,
    reason: 'kernels were switched off',
  })
  expect(runtime.info.ortVersion).toMatch(/^1\.\d+\.\d+/)
})

test('steps share a session, update memory in place, and take other sizes each run', async () => {
  const weights = join(folder, 'weights.bin')
  writeFileSync(weights, new Uint8Array(Float32Array.from({ length: 32 }, (_, i) => i).buffer))
  const file = await runtime.loadFile(weights)
  expect([...new Float32Array(file.read(64, 8).buffer)]).toEqual([16, 17])
  expect(() => file.bytes).toThrow('read-only')
  const sum = runtime.allocate(128)
  const program = await runtime.createProgram({
    models: [binary('Add', 4)],
    dims: ['N'],
    steps: [0, 1].map((i) => ({
      model: 0,
      name: `add.${i}`,
      inputs: { x: at(file, ['N', 4], 'f32', i * 64), y: at(sum, ['N', 4]) },
      outputs: { z: at(sum, ['N', 4]) },
    })),
  })
  for (const N of [4, 1, 0, 3]) {
    floats(sum).fill(0)
    const { stepMs } = await program.run({ dims: { N } })
    expect(stepMs.length).toBe(2)
    expect([...floats(sum)]).toEqual(Array.from({ length: 32 }, (_, i) => (i < 4 * N ? i + i + 16 : 0)))
  }
  program.close()
  await expect(program.run({ dims: { N: 1 } })).rejects.toThrow('closed')
})

test('every type but bf16 passes through', async () => {
  const x = runtime.allocate(64)
  const y = runtime.allocate(64)
  x.bytes.forEach((_, i, all) => {
    all[i] = i % 2
  })
  for (const dtype of ['f32', 'f64', 'f16', 'i64', 'i32', 'u8', 'i8', 'bool'] as const) {
    const copy = model(
      [['x', dtype, [3]]],
      [['z', dtype, [3]]],
      [{ op: 'Identity', domain: '', inputs: ['x'], outputs: ['z'] }],
    )
    const program = await runtime.createProgram({
      models: [copy],
      dims: [],
      steps: [{ model: 0, name: dtype, inputs: { x: at(x, [3], dtype) }, outputs: { z: at(y, [3], dtype) } }],
    })
    y.bytes.fill(0xee)
    await program.run()
    const bytes = { f32: 12, f64: 24, f16: 6, i64: 24, i32: 12, u8: 3, i8: 3, bool: 3 }[dtype]
    expect([...y.bytes]).toEqual([...x.bytes.subarray(0, bytes), ...Array(64 - bytes).fill(0xee)])
  }
  await expect(
    runtime.createProgram({
      models: [binary('Add', 4, 'bf16')],
      dims: [],
      steps: [{ model: 0, name: 's', inputs: { x: at(x, [1, 4], 'bf16') }, outputs: { z: at(y, [1, 4], 'bf16') } }],
    }),
  ).rejects.toThrow('step "s", input "x": onnxruntime-node has no bf16 tensors')
})

test('errors name step and tensor', async () => {
  const x = runtime.allocate(32)
  const bound = { inputs: { x: at(x, ['N', 4]), y: at(x, ['N', 4]) }, outputs: { z: at(x, ['N', 4]) } }
  const make = (model: ProgramModel, step: object) =>
    runtime.createProgram({ models: [model], dims: ['N'], steps: [{ model: 0, name: 's', ...bound, ...step }] })
  await expect(make({ bytes: new Uint8Array(100).fill(7) }, {})).rejects.toThrow(/model 0 \(step "s"\): ./)
  await expect(make(binary('Add', 4), { inputs: { x: at(x, ['N', 4]) } })).rejects.toThrow('input "y": not bound')
  await expect(make(binary('Add', 4), { outputs: {} })).rejects.toThrow('no output is bound')
  await expect(make(binary('Add', 4), { outputs: { q: at(x, ['N', 4]) } })).rejects.toThrow(
    'output "q": the model has no',
  )
  const program = await make(binary('Add', 4), {})
  await expect(program.run({ dims: { N: 3 } })).rejects.toThrow(
    'step "s", input "x": shape [3, 4] of f32 needs 48 bytes at offset 0, but the buffer has 32',
  )
  await expect(program.run()).rejects.toThrow('dimension "N" was not given')
  await expect(program.run({ dims: { N: 1 }, to: 2 })).rejects.toThrow('steps [0, 2) of a program that has 1')
  const other = await make(binary('MatMul', 4), {})
  await expect(other.run({ dims: { N: 2 } })).rejects.toThrow(/step "s": ./)
  x.free()
  await expect(program.run({ dims: { N: 1 } })).rejects.toThrow('step "s", input "x": its buffer was freed')
})

test('does not block the event loop, and stops between steps', async () => {
  const x = runtime.allocate(512 * 512 * 4)
  const program = await runtime.createProgram({
    models: [binary('MatMul', 512)],
    dims: ['N'],
    steps: Array.from({ length: 2000 }, (_, i) => ({
      model: 0,
      name: `s${i}`,
      inputs: { x: at(x, ['N', 512]), y: at(x, ['N', 512]) },
      outputs: { z: at(x, ['N', 512]) },
    })),
  })
  const controller = new AbortController()
  let ticks = 0
  const timer = setInterval(() => ticks++, 5)
  setTimeout(() => controller.abort(new Error('enough')), 200)
  await expect(program.run({ dims: { N: 512 }, signal: controller.signal })).rejects.toThrow('enough')
  clearInterval(timer)
  expect(ticks).toBeGreaterThan(3)
})

test('what only the addon can do says so', async () => {
  await expect(runtime.measureCeiling(10)).rejects.toThrow('needs the native addon: kernels were switched off')
})

test('an addon that is not there falls back, unless that is forbidden', async () => {
  const before = process.env.ESPALIER_BUILD
  process.env.ESPALIER_BUILD = folder
  try {
    const fallback = await openRuntime()
    expect(fallback.info).toMatchObject({ kernels: false, isas: [] })
    expect(fallback.info.reason).toMatch(/not built .*install a C\+\+17 compiler and CMake/)
    await fallback.close()
    await expect(openRuntime({ allowFallback: false })).rejects.toThrow('not built')
  } finally {
    if (before === undefined) delete process.env.ESPALIER_BUILD
    else process.env.ESPALIER_BUILD = before
  }
})
