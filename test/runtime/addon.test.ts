// The runtime over the addon: what ONNX Runtime does with our operators, buffers and steps.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { layInStripes } from '../../src/models/stripes.js'
import { openAddon } from '../../src/runtime/addon.js'
import type { Binding, DeviceBuffer, DType, Runtime } from '../../src/runtime/types.js'
import { binary, model, sequence } from './models.js'
import { floats, hasProbe, openProbe } from './probe.js'

let runtime: Runtime
let folder: string
beforeAll(() => {
  if (hasProbe) runtime = openProbe()
  folder = mkdtempSync(join(tmpdir(), 'espalier-runtime-'))
})
afterAll(async () => {
  await runtime?.close()
  rmSync(folder, { recursive: true })
})

const at = (buffer: DeviceBuffer, shape: (number | string)[], dtype: DType = 'f32', byteOffset = 0): Binding => ({
  buffer,
  byteOffset,
  dtype,
  shape,
})
/** Who runs the nodes of a model of ours: the session, or the addon one after another. */
const ways = [
  { way: 'ONNX Runtime', model },
  { way: 'a sequence', model: sequence },
]
type Attributes = { ints?: Record<string, number>; floats?: Record<string, number> }
const axpyOf =
  (make: typeof model) =>
  (attributes: Attributes = {}) =>
    make(
      [
        ['x', 'f32', ['N', 4]],
        ['y', 'f32', ['N', 4]],
      ],
      [['z', 'f32', ['N', 4]]],
      [{ op: 'Axpy', inputs: ['x', 'y'], outputs: ['z'], ...attributes }],
    )

describe.runIf(hasProbe).each(ways)('operators of $way', ({ model }) => {
  const axpy = axpyOf(model)

  test('inputs of any mix of types, absent ones in the middle and at the end, outputs that nobody asks for', async () => {
    const types: DType[] = ['f32', 'bf16', 'f16', 'i64', 'i32', 'u8', 'i8', 'f64', 'bool']
    const ids: Record<DType, number> = { f32: 1, u8: 2, i8: 3, i32: 6, i64: 7, bool: 9, f16: 10, f64: 11, bf16: 16 }
    const data = runtime.allocate(1024)
    const out = runtime.allocate(64)
    const second = runtime.allocate(4)
    for (const [i, dtype] of types.entries()) {
      const other = types[(i + 3) % types.length]!
      const program = await runtime.createProgram({
        models: [
          model(
            [
              ['a', dtype, ['N', 3]],
              ['c', other, [5]],
            ],
            [['y', 'f32', [16]]],
            [{ op: 'Describe', inputs: ['a', '', 'c'], outputs: ['y'] }],
          ),
          model(
            [
              ['a', dtype, ['N', 3]],
              ['b', other, []],
            ],
            [
              ['y', 'f32', [16]],
              ['z', 'f32', [1]],
            ],
            [{ op: 'Describe', inputs: ['a', 'b'], outputs: ['y', 'z'] }],
          ),
        ],
        dims: ['N'],
        steps: [
          {
            model: 0,
            name: 'gap',
            inputs: { a: at(data, ['N', 3], dtype), c: at(data, [5], other) },
            outputs: { y: at(out, [16]) },
          },
          {
            model: 1,
            name: 'both',
            inputs: { a: at(data, ['N', 3], dtype), b: at(data, [], other) },
            outputs: { y: at(out, [16]), z: at(second, [1]) },
          },
        ],
      })
      await program.run({ dims: { N: 2 }, to: 1 })
      expect([...floats(out)]).toEqual([ids[dtype], 2, 6, 2, 0, 0, 0, 0, ids[other], 1, 5, 5, 0, 0, 0, 0])
      await program.run({ dims: { N: 7 }, from: 1 })
      expect([...floats(out)]).toEqual([ids[dtype], 2, 21, 7, ids[other], 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1])
      expect(floats(second)[0]).toBe(42)
      program.close()
    }
  })

  test('an input of no elements is there', async () => {
    const data = runtime.allocate(64)
    const out = runtime.allocate(64)
    const program = await runtime.createProgram({
      models: [
        model([['a', 'f32', ['N', 3]]], [['y', 'f32', [16]]], [{ op: 'Describe', inputs: ['a'], outputs: ['y'] }]),
      ],
      dims: ['N'],
      steps: [{ model: 0, name: 's', inputs: { a: at(data, ['N', 3]) }, outputs: { y: at(out, [16]) } }],
    })
    await program.run({ dims: { N: 0 } })
    expect([...floats(out).subarray(0, 4)]).toEqual([1, 2, 0, 0])
  })

  test('attributes are read whichever way they are written; a refusal names the op', async () => {
    const x = runtime.allocate(32)
    const step = {
      model: 0,
      name: 's',
      inputs: { x: at(x, ['N', 4]), y: at(x, ['N', 4]) },
      outputs: { z: at(x, ['N', 4]) },
    }
    for (const attributes of [{ ints: { a: 3 } }, { floats: { a: 3 } }]) {
      const program = await runtime.createProgram({ models: [axpy(attributes)], dims: ['N'], steps: [step] })
      floats(x).fill(1)
      await program.run({ dims: { N: 2 } })
      expect([...floats(x)]).toEqual(Array(8).fill(4))
    }
    const refused = model(
      [['x', 'f32', [1]]],
      [['z', 'f32', [1]]],
      [{ op: 'Sleep', inputs: ['x'], outputs: ['z'], ints: { ms: -1 } }],
    )
    await expect(
      runtime.createProgram({
        models: [refused],
        dims: [],
        steps: [{ model: 0, name: 'nap', inputs: { x: at(x, [1]) }, outputs: { z: at(x, [1]) } }],
      }),
    ).rejects.toThrow(/step "nap".*Sleep does not exist with these attributes/)
  })

  test('a node with too few inputs is refused', async () => {
    const x = runtime.allocate(32)
    const short = model([['x', 'f32', [1]]], [['z', 'f32', [1]]], [{ op: 'Axpy', inputs: ['x'], outputs: ['z'] }])
    await expect(
      runtime.createProgram({
        models: [short],
        dims: [],
        steps: [{ model: 0, name: 's', inputs: { x: at(x, [1]) }, outputs: { z: at(x, [1]) } }],
      }),
    ).rejects.toThrow(/Axpy: needs 2 inputs, but the node has 1/)
  })

  test('a kernel that fails names step, op and reason; the program runs on', async () => {
    const x = runtime.allocate(32)
    const bound = { inputs: { x: at(x, ['N', 4]), y: at(x, ['N', 4]) }, outputs: { z: at(x, ['N', 4]) } }
    const program = await runtime.createProgram({
      models: [axpy(), axpy({ ints: { fails: 1 } })],
      dims: ['N'],
      steps: [
        { model: 0, name: 'fine', ...bound },
        { model: 1, name: 'block.3 backward', ...bound },
      ],
    })
    await expect(program.run({ dims: { N: 2 } })).rejects.toThrow(/step "block.3 backward".*asked to fail/)
    await program.run({ dims: { N: 2 }, to: 1 })
  })
})

describe.runIf(hasProbe).each(ways)('steps of $way', ({ model }) => {
  const axpy = axpyOf(model)

  test('share a session, update memory in place, take other sizes each run, and report their time', async () => {
    const weights = runtime.allocate(4 * 4 * 8)
    const sum = runtime.allocate(4 * 4 * 8)
    floats(weights).forEach((_, i, all) => {
      all[i] = i
    })
    const program = await runtime.createProgram({
      models: [axpy({ floats: { a: 2 } }), binary('Mul', 4)],
      dims: ['N'],
      steps: [
        ...[0, 1].map((i) => ({
          model: 0,
          name: `add.${i}`,
          inputs: { x: at(weights, ['N', 4], 'f32', i * 64), y: at(sum, ['N', 4]) },
          outputs: { z: at(sum, ['N', 4]) },
        })),
        {
          model: 1,
          name: 'square',
          inputs: { x: at(sum, ['N', 4]), y: at(sum, ['N', 4]) },
          outputs: { z: at(sum, ['N', 4]) },
        },
      ],
    })
    for (const N of [4, 1, 3, 4]) {
      floats(sum).fill(0)
      const { stepMs } = await program.run({ dims: { N } })
      expect(stepMs.length).toBe(3)
      expect(Math.min(...stepMs)).toBeGreaterThan(0)
      expect([...floats(sum)]).toEqual(
        Array.from({ length: 32 }, (_, i) => (i < 4 * N ? (2 * i + 2 * (i + 16)) ** 2 : 0)),
      )
    }
  })

  test('an output of the wrong shape is an error', async () => {
    const x = runtime.allocate(256)
    const program = await runtime.createProgram({
      models: [
        model([['x', 'f32', ['N', 4]]], [['z', 'f32', ['M', 4]]], [{ op: 'Sleep', inputs: ['x'], outputs: ['z'] }]),
      ],
      dims: ['N', 'M'],
      steps: [{ model: 0, name: 'copy', inputs: { x: at(x, ['N', 4]) }, outputs: { z: at(x, ['M', 4]) } }],
    })
    await expect(program.run({ dims: { N: 4, M: 5 } })).rejects.toThrow(/step "copy".*shape/i)
    await program.run({ dims: { N: 4, M: 4 } })
  })

  test('a binding outside its buffer names step, tensor and sizes', async () => {
    const x = runtime.allocate(32)
    const create = (byteOffset: number) =>
      runtime.createProgram({
        models: [axpy()],
        dims: ['N'],
        steps: [
          {
            model: 0,
            name: 'head',
            inputs: { x: at(x, ['N', 4], 'f32', byteOffset), y: at(x, ['N', 4]) },
            outputs: { z: at(x, ['N', 4]) },
          },
        ],
      })
    const program = await create(16)
    await program.run({ dims: { N: 1 } })
    await expect(program.run({ dims: { N: 2 } })).rejects.toThrow(
      'step "head", input "x": shape [2, 4] of f32 needs 32 bytes at offset 16, but the buffer has 32',
    )
    await expect(program.run({ dims: { N: 2 ** 52 } })).rejects.toThrow(/input "x"/)
    await expect(program.run({})).rejects.toThrow('dimension "N" was not given')
    await expect(program.run({ dims: { N: -1 } })).rejects.toThrow('dimension "N": -1')
    await expect(program.run({ dims: { N: 1, M: 1 } })).rejects.toThrow('"M" is not among')
    await expect(program.run({ dims: { N: 1 }, to: 2 })).rejects.toThrow('steps [0, 2) of a program that has 1')
    await expect((await create(48)).run({ dims: { N: 0 } })).rejects.toThrow('at offset 48')
    await expect(create(2)).rejects.toThrow('byte offset 2 is not a multiple')
  })

  test('bindings that do not match the model are errors when the program is made', async () => {
    const x = runtime.allocate(64)
    const good = { x: at(x, ['N', 4]), y: at(x, ['N', 4]) }
    const make = (inputs: Record<string, Binding>, outputs: Record<string, Binding>) =>
      runtime.createProgram({
        models: [binary('Add', 4)],
        dims: ['N'],
        steps: [{ model: 0, name: 's', inputs, outputs }],
      })
    const z = { z: at(x, ['N', 4]) }
    await expect(make({ x: good.x }, z)).rejects.toThrow('step "s", input "y": not bound')
    await expect(make({ ...good, w: good.x }, z)).rejects.toThrow('input "w": the model has no such input')
    await expect(make({ ...good, x: at(x, ['N', 4], 'f16') }, z)).rejects.toThrow(
      'bound as f16, but the model declares f32',
    )
    await expect(make({ ...good, x: at(x, ['N', 5]) }, z)).rejects.toThrow(
      'bound with shape [?, 5], but the model declares [?, 4]',
    )
    await expect(make({ ...good, x: at(x, ['K', 4]) }, z)).rejects.toThrow('"K" is not among')
    await expect(make(good, {})).rejects.toThrow('no output is bound')
    await expect(make(good, { q: good.x })).rejects.toThrow('output "q": the model has no such output')
  })

  test('bytes that are no model are an error', async () => {
    const step = { model: 0, name: 's', inputs: {}, outputs: {} }
    for (const bytes of [
      new Uint8Array(0),
      new Uint8Array(1000).fill(7),
      binary('Add', 4).bytes.subarray(0, 60),
      binary('NoSuchOp', 4).bytes,
    ])
      await expect(runtime.createProgram({ models: [{ bytes }], dims: [], steps: [step] })).rejects.toThrow(
        /model 0 \(step "s"\): ./,
      )
  })
})

describe.runIf(hasProbe)('a sequence', () => {
  const outs = ['t', 'u', 'z'].map((name): [string, DType, (number | string)[]] => [name, 'f32', ['N', 4]])
  const nodes = [
    { op: 'Axpy', inputs: ['x', 'x'], outputs: ['t'], floats: { a: 2 } },
    { op: 'Axpy', inputs: ['t', 'x'], outputs: ['u'], floats: { a: 1 } },
    { op: 'Axpy', inputs: ['u', 't'], outputs: ['z'], floats: { a: 1 } },
  ]

  test('gives what ONNX Runtime gives, its own values freed, one of the outputs bound or all', async () => {
    const x = runtime.allocate(4 * 4 * 8)
    floats(x).forEach((_, i, all) => {
      all[i] = i - 7
    })
    const own = { inputs: { x: at(x, ['N', 4]) } }
    for (const names of [['z'], ['t', 'u', 'z'], ['u']]) {
      const results = []
      for (const make of [model, sequence]) {
        const buffers = names.map((name) => ({ name, buffer: runtime.allocate(4 * 4 * 8) }))
        const outputs = Object.fromEntries(buffers.map(({ name, buffer }) => [name, at(buffer, ['N', 4])]))
        const program = await runtime.createProgram({
          models: [make([['x', 'f32', ['N', 4]]], outs, nodes)],
          dims: ['N'],
          steps: [{ model: 0, name: 's', ...own, outputs }],
        })
        const { live } = runtime.memory()
        for (const N of [8, 3, 5]) await program.run({ dims: { N } })
        expect(runtime.memory().live).toBe(live)
        results.push(buffers.map(({ buffer }) => [...floats(buffer)]))
        program.close()
      }
      expect(results[1]).toEqual(results[0])
      expect(results[1]!.flat().some((v) => v !== 0)).toBe(true)
    }
  })

  test('of a node that the model lacks is refused', async () => {
    const x = runtime.allocate(64)
    const { bytes } = model([['x', 'f32', ['N', 4]]], [outs[0]!], [nodes[0]!])
    const wired = [{ name: 'other', inputs: ['x', 'x'], outputs: ['t'] }]
    const step = { model: 0, name: 's', inputs: { x: at(x, ['N', 4]) }, outputs: { t: at(x, ['N', 4]) } }
    await expect(
      runtime.createProgram({ models: [{ bytes, nodes: wired }], dims: ['N'], steps: [step] }),
    ).rejects.toThrow('model 0 (step "s"): the model has no node "other" of our operators')
  })
})

describe.runIf(hasProbe).each(ways)('off the event loop, by $way', ({ model }) => {
  const nap = (ms: number) =>
    model([['x', 'f32', [1]]], [['z', 'f32', [1]]], [{ op: 'Sleep', inputs: ['x'], outputs: ['z'], ints: { ms } }])
  const sleeper = async (ms: number, steps: number) => {
    const x = runtime.allocate(4)
    return runtime.createProgram({
      models: [nap(ms)],
      dims: [],
      steps: Array.from({ length: steps }, (_, i) => ({
        model: 0,
        name: `nap.${i}`,
        inputs: { x: at(x, [1]) },
        outputs: { z: at(x, [1]) },
      })),
    })
  }

  test('timers go on during a run, and runs of one program queue', async () => {
    const program = await sleeper(100, 1)
    const start = performance.now()
    let ticks = 0
    const timer = setInterval(() => ticks++, 5)
    await Promise.all([program.run(), program.run()])
    clearInterval(timer)
    expect(performance.now() - start).toBeGreaterThan(195)
    expect(ticks).toBeGreaterThan(3)
  })

  test('aborting stops between steps, and before a queued run starts', async () => {
    const program = await sleeper(30, 100)
    const controller = new AbortController()
    const start = performance.now()
    const runs = [program.run({ signal: controller.signal }), program.run({ signal: controller.signal })]
    setTimeout(() => controller.abort(new Error('enough')), 50)
    for (const result of await Promise.allSettled(runs))
      expect(result).toMatchObject({ status: 'rejected', reason: { message: 'enough' } })
    expect(performance.now() - start).toBeLessThan(1500)
    await expect(program.run({ signal: controller.signal })).rejects.toThrow('enough')
    await program.run({ to: 1, signal: new AbortController().signal })
  })

  test('aborting stops between the nodes of one step', async () => {
    const x = runtime.allocate(4)
    const names = ['x', ...Array.from({ length: 50 }, (_, i) => `t${i}`)]
    const chain = model(
      [['x', 'f32', [1]]],
      [['t49', 'f32', [1]]],
      names.slice(1).map((name, i) => ({ op: 'Sleep', inputs: [names[i]!], outputs: [name], ints: { ms: 30 } })),
    )
    const program = await runtime.createProgram({
      models: [chain],
      dims: [],
      steps: [{ model: 0, name: 'chain', inputs: { x: at(x, [1]) }, outputs: { t49: at(x, [1]) } }],
    })
    const start = performance.now()
    await expect(program.run({ signal: AbortSignal.timeout(50) })).rejects.toThrow(/timeout/)
    expect(performance.now() - start).toBeLessThan(1000)
  })

  test('closing waits for the run under way; freeing a buffer takes effect after it', async () => {
    const x = runtime.allocate(4)
    const program = await runtime.createProgram({
      models: [nap(100)],
      dims: [],
      steps: [{ model: 0, name: 'nap', inputs: { x: at(x, [1]) }, outputs: { z: at(x, [1]) } }],
    })
    const running = program.run()
    await new Promise((resolve) => setTimeout(resolve, 20))
    x.free()
    expect(() => x.bytes).toThrow('freed')
    expect(() => x.read(0, 4)).toThrow('freed')
    await running
    await expect(program.run()).rejects.toThrow('step "nap", input "x": its buffer was freed')
    program.close()
    program.close()
    await expect(program.run()).rejects.toThrow('closed')
  })
})

describe.runIf(hasProbe)('buffers', () => {
  test('are zeroed, aligned, and views of one memory', () => {
    for (const size of [0, 1, 4096, 1_000_003]) {
      const buffer = runtime.allocate(size)
      expect(buffer.byteLength).toBe(size)
      expect(buffer.bytes.every((byte) => byte === 0)).toBe(true)
      if (size) buffer.bytes[size - 1] = 7
      expect(buffer.read(size ? size - 1 : 0, size ? 1 : 0)).toEqual(Uint8Array.from(size ? [7] : []))
      expect(() => buffer.read(size, 1)).toThrow('outside')
      const { bytes } = buffer
      buffer.free()
      buffer.free()
      expect(bytes.byteLength).toBe(0)
    }
    expect(() => runtime.allocate(-1)).toThrow('byteLength')
    expect(() => runtime.allocate(2 ** 52)).toThrow('cannot allocate')
  })

  test('a loaded file is read by programs and never written', async () => {
    const path = join(folder, 'weights.bin')
    writeFileSync(path, new Uint8Array(Float32Array.from([1, 2, 3, 4]).buffer))
    const file = await runtime.loadFile(path)
    expect(file).toMatchObject({ byteLength: 16, readOnly: true })
    expect(() => file.bytes).toThrow('read-only')
    expect([...new Float32Array(file.read(4, 8).buffer)]).toEqual([2, 3])
    const y = runtime.allocate(16)
    const step = { model: 0, name: 's', inputs: { x: at(file, [1, 4]), y: at(file, [1, 4]) } }
    const program = await runtime.createProgram({
      models: [binary('Add', 4)],
      dims: [],
      steps: [{ ...step, outputs: { z: at(y, [1, 4]) } }],
    })
    await program.run()
    expect([...floats(y)]).toEqual([2, 4, 6, 8])
    await expect(
      runtime.createProgram({
        models: [binary('Add', 4)],
        dims: [],
        steps: [{ ...step, outputs: { z: at(file, [1, 4]) } }],
      }),
    ).rejects.toThrow('step "s", output "z": bound to a loaded file, which is read-only')
    await expect(runtime.loadFile(join(folder, 'missing'))).rejects.toThrow(/missing: No such file/)
    await expect(runtime.loadFile(folder)).rejects.toThrow('not a regular file')
    writeFileSync(path, '')
    expect((await runtime.loadFile(path)).byteLength).toBe(0)
  })

  test('matrices of a loaded file lie in stripes, everything else as it was', async () => {
    const path = join(folder, 'striped.bin')
    // Pieces are a megabyte: the first matrix takes several, its last stripe has 7 rows.
    const matrices = [
      { rows: 2055, unitBytes: 4, perRow: 300, at: 64 },
      { rows: 3, unitBytes: 2, perRow: 5, at: 64 + 2055 * 1200 },
    ]
    const bytes = Uint8Array.from({ length: 64 + 2055 * 1200 + 30 + 17 }, (_, i) => Math.imul(i, 2654435761) >>> 24)
    writeFileSync(path, bytes)
    const ranges = matrices.map(({ rows, unitBytes, perRow, at }) => ({
      byteOffset: at,
      byteLength: rows * unitBytes * perRow,
      rows,
      unitBytes,
    }))
    const expected = bytes.slice()
    for (const range of ranges) {
      const end = range.byteOffset + range.byteLength
      expected.set(layInStripes(bytes.subarray(range.byteOffset, end), range), range.byteOffset)
    }
    const file = await runtime.loadFile(path, ranges.toReversed())
    expect(Buffer.compare(file.read(0, bytes.length), expected)).toBe(0)
    expect(Buffer.compare(expected, bytes)).not.toBe(0)
    file.free()
    const [range] = ranges as [(typeof ranges)[0]]
    for (const wrong of [
      [{ ...range, byteOffset: bytes.length }],
      [{ ...range, byteLength: bytes.length }],
      [{ ...range, rows: 7 }],
      [{ ...range, unitBytes: 3 }],
      [range, range],
    ])
      await expect(runtime.loadFile(path, wrong)).rejects.toThrow(/striped.bin: no matrix of \d+ rows at byte \d+/)
  })

  test('memory of intermediates goes back to the arena', async () => {
    const x = runtime.allocate(4 * 1024 * 64)
    const chain = model(
      [['x', 'f32', ['N', 64]]],
      [['z', 'f32', ['N', 64]]],
      [
        { op: 'Exp', domain: '', inputs: ['x'], outputs: ['a'] },
        { op: 'Axpy', inputs: ['a', 'x'], outputs: ['b'] },
        { op: 'Mul', domain: '', inputs: ['a', 'b'], outputs: ['c'] },
        { op: 'Axpy', inputs: ['c', 'b'], outputs: ['z'] },
      ],
    )
    const program = await runtime.createProgram({
      models: [chain],
      dims: ['N'],
      steps: [{ model: 0, name: 's', inputs: { x: at(x, ['N', 64]) }, outputs: { z: at(x, ['N', 64]) } }],
    })
    runtime.trim()
    const before = runtime.memory()
    for (const N of [1024, 1024, 17, 1024]) await program.run({ dims: { N } })
    const after = runtime.memory()
    expect(after.live).toBe(before.live)
    if (after.highWater > 0) {
      // sanitizer builds have no arena
      expect(after.highWater - before.highWater).toBeLessThan(3.2 * 4 * 1024 * 64)
      expect(after.scratch).toBe(4 * 1024 * 64)
    }
  })
})

describe.runIf(hasProbe)('processes', () => {
  const script = fileURLToPath(new URL('./in-process.mjs', import.meta.url))
  const inProcess = (task: string, env: Record<string, string>) => {
    const result = spawnSync(process.execPath, [script, task], { env: { ...process.env, ...env }, encoding: 'utf8' })
    return { status: result.status, out: result.stdout.trim(), error: result.stderr }
  }

  test('one thread and more give the same bits', () => {
    const one = inProcess('hash', { ESPALIER_THREADS: '1' })
    expect(one).toMatchObject({ status: 0, error: '' })
    expect(one.out).toMatch(/^threads 1 /)
    for (const threads of ['2', '5']) {
      const other = inProcess('hash', { ESPALIER_THREADS: threads })
      expect(other.out).toMatch(`threads ${threads} `)
      expect(other.out.split(' ')[2]).toBe(one.out.split(' ')[2])
    }
  })

  test('leaving in the middle of a run ends cleanly, and an idle runtime does not keep a process', () => {
    expect(inProcess('exit', {})).toMatchObject({ status: 3, error: '' })
    expect(inProcess('idle', {})).toMatchObject({ status: 0, error: '' })
  })

  test('a worker thread can use the addon and end', () => {
    expect(inProcess('worker', {})).toMatchObject({ status: 0, out: 'ok ok', error: '' })
  })

  test('onnxruntime-node runs beside it', () => {
    expect(inProcess('beside', {})).toMatchObject({ status: 0, out: 'ok', error: '' })
  })

  test('ESPALIER_PROFILE=1 times the operators', () => {
    const { out } = inProcess('profile', { ESPALIER_PROFILE: '1' })
    expect(JSON.parse(out)).toEqual([{ op: 'Axpy', calls: 3, milliseconds: expect.any(Number) }])
    expect(JSON.parse(inProcess('profile', {}).out)).toEqual([])
  })

  test.runIf(process.env.ESPALIER_SANITIZER === 'address')(
    'the address sanitizer sees a kernel that reads one past',
    () => {
      const { status, error } = inProcess('overread', {})
      expect(status).not.toBe(0)
      expect(error).toContain('heap-buffer-overflow')
    },
  )

  test('impossible settings are errors that say what is possible', () => {
    expect(inProcess('hash', { ESPALIER_THREADS: '0' }).error).toContain(
      'ESPALIER_THREADS=0 must be a whole number from 1',
    )
    expect(inProcess('hash', { ESPALIER_ISA: 'sse9' }).error).toMatch(
      /ESPALIER_ISA sse9 is not an instruction set; possible here: .*portable/,
    )
    const other = runtime.info.threads + 1
    expect(() => openAddon({ threads: other })).toThrow(`cannot be changed to ${other}`)
  })

  test('every instruction set of this processor can be forced', () => {
    for (const isa of runtime.info.isas) expect(openAddon({ isa }).info.isa).toBe(isa)
  })
})

describe.runIf(hasProbe)('measurements', () => {
  test('the ceiling follows the processor', async () => {
    const { kind, gflops } = await runtime.measureCeiling(10)
    expect(kind).toBe(runtime.info.isas.includes('avx512bf16') ? 'bf16' : 'fp32')
    expect(gflops).toBeGreaterThan(0.5)
  })
})
