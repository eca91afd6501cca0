// Tasks that need a process of their own: node in-process.mjs TASK. Loads the sources through jiti.
import { createHash } from 'node:crypto'
import { isMainThread, Worker } from 'node:worker_threads'
import { createJiti } from 'jiti'

const jiti = createJiti(import.meta.url)
const { openProbe, floats } = await jiti.import('./probe.ts')
const { binary, model } = await jiti.import('./models.ts')

const at = (buffer, shape, dtype = 'f32') => ({ buffer, byteOffset: 0, dtype, shape })
async function axpyProgram(runtime, rows, steps = 1) {
  const x = runtime.allocate(rows * 64 * 4)
  floats(x).forEach((_, i, all) => {
    all[i] = Math.sin(i)
  })
  const value = ['N', 64]
  const made = model(
    [
      ['x', 'f32', value],
      ['y', 'f32', value],
    ],
    [['z', 'f32', value]],
    [{ op: 'Axpy', inputs: ['x', 'y'], outputs: ['z'] }],
  )
  const program = await runtime.createProgram({
    models: [made],
    dims: ['N'],
    steps: Array.from({ length: steps }, (_, i) => ({
      model: 0,
      name: `s${i}`,
      inputs: { x: at(x, value), y: at(x, value) },
      outputs: { z: at(x, value) },
    })),
  })
  return { x, program }
}

const tasks = {
  async hash() {
    const runtime = openProbe()
    const { x, program } = await axpyProgram(runtime, 333, 3)
    await program.run({ dims: { N: 333 } })
    console.log(`threads ${runtime.info.threads} ${createHash('sha256').update(x.bytes).digest('hex')}`)
  },
  async exit() {
    const runtime = openProbe()
    const { program } = await axpyProgram(runtime, 100_000, 100_000)
    program.run({ dims: { N: 100_000 } }).catch(() => {})
    setTimeout(() => process.exit(3), 100)
  },
  async overread() {
    const runtime = openProbe()
    const x = runtime.allocate(64)
    const made = model([['x', 'f32', [16]]], [['z', 'f32', [1]]], [{ op: 'ReadPast', inputs: ['x'], outputs: ['z'] }])
    const program = await runtime.createProgram({
      models: [made],
      dims: [],
      steps: [{ model: 0, name: 's', inputs: { x: at(x, [16]) }, outputs: { z: at(runtime.allocate(4), [1]) } }],
    })
    await program.run()
  },
  async idle() {
    const runtime = openProbe()
    const { program } = await axpyProgram(runtime, 10)
    await program.run({ dims: { N: 10 } })
  },
  async worker() {
    if (isMainThread) {
      const run = () =>
        new Promise((resolve, reject) => {
          const worker = new Worker(new URL(import.meta.url), { argv: ['worker'] })
          worker.on('message', resolve).on('error', reject)
        })
      console.log(await run(), await run())
    } else {
      const { parentPort } = await import('node:worker_threads')
      const runtime = openProbe()
      const { program } = await axpyProgram(runtime, 10)
      await program.run({ dims: { N: 10 } })
      parentPort.postMessage('ok')
    }
  },
  async beside() {
    const runtime = openProbe()
    const { x, program } = await axpyProgram(runtime, 2)
    const ort = await import('onnxruntime-node')
    const session = await ort.InferenceSession.create(binary('Add', 2).bytes)
    const a = new ort.Tensor('float32', Float32Array.of(1, 2), [1, 2])
    const { z } = await session.run({ x: a, y: a })
    floats(x).fill(1)
    await program.run({ dims: { N: 2 } })
    console.log([...z.data].join() === '2,4' && floats(x)[0] === 2 ? 'ok' : 'wrong')
  },
  async profile() {
    const runtime = openProbe()
    const { program } = await axpyProgram(runtime, 10, 3)
    await program.run({ dims: { N: 10 } })
    console.log(JSON.stringify(program.profile()))
  },
}
await tasks[process.argv[2]]()
