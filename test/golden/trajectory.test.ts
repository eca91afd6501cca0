// The reference LoRA training run of the real base, through the real loop in strict arithmetic: losses, gradient
// norms, gradients of step 1, the end adapter, held-out losses; and the adapter variants on one micro-batch.
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { alignLabels } from '../../src/data/index.js'
import { viewTensor } from '../../src/models/adapter-layout.js'
import { type OpenedBase, openBase } from '../../src/models/base-directory.js'
import { prepareBase } from '../../src/models/fetch.js'
import { type LoadedBase, loadBase } from '../../src/models/loaded-base.js'
import { peftFiles } from '../../src/models/peft.js'
import { openSafetensors } from '../../src/models/safetensors.js'
import { openRuntime, type Runtime } from '../../src/runtime/index.js'
import { openAdapter, type RunAdapter } from '../../src/training/adapter.js'
import { evaluateLoss, packDocuments } from '../../src/training/evaluate.js'
import type { StepEvent } from '../../src/training/events.js'
import { trainOffline } from '../../src/training/loop.js'
import type { TrainProgram } from '../../src/training/program.js'
import { openTrainProgram } from '../../src/training/step.js'
import { goldenDir } from './folder.js'

interface GoldenDocument {
  ids: number[]
  labels: number[]
}
interface GoldenStep {
  step: number
  learning_rate: number
  loss: number
  target_tokens: number
  grad_norm: number
  grad_l2: Record<string, number>
  param_l2: Record<string, number>
}

const sft = (...parts: string[]) => goldenDir('models', 'sft', ...parts)
const read = (name: string) => JSON.parse(readFileSync(sft(name), 'utf8'))
const batches = read('batches.json') as {
  steps: { target_tokens: number; micro_batches: { documents: GoldenDocument[] }[] }[]
  held_out: GoldenDocument
}
const trajectory = read('trajectory.json') as {
  settings: { betas: [number, number]; eps: number; weight_decay: number; max_grad_norm: number }
  steps: GoldenStep[]
  eval_loss_before: number
  eval_loss_after: number
}
const toDocument = ({ ids, labels }: GoldenDocument, row = 0) => ({
  ids,
  labels: alignLabels(Int32Array.from(labels)),
  row,
})
const toBatch = (documents: GoldenDocument[]) =>
  packDocuments(documents.map((document, row) => toDocument(document, row)))
const norm = (values: ArrayLike<number>) => Math.sqrt(Array.from(values).reduce((sum, x) => sum + x * x, 0))
const maxTokens = Math.max(
  batches.held_out.ids.length,
  ...batches.steps.flatMap(({ micro_batches }) =>
    micro_batches.map(({ documents }) => documents.reduce((sum, { ids }) => sum + ids.length, 0)),
  ),
)

function expectRelative(actual: number, expected: number, tolerance: number, what: string) {
  expect(
    Math.abs(actual - expected) / Math.abs(expected),
    `${what}: ${actual}, expected ${expected}`,
  ).toBeLessThanOrEqual(tolerance)
}

let runtime: Runtime
let opened: OpenedBase
let base: LoadedBase | undefined
let folder: string
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-trajectory-'))
  try {
    opened = openBase((await prepareBase('smollm2-135m-instruct', { offline: !process.env.ESPALIER_REQUIRE_BASE })).dir)
  } catch (error) {
    if (process.env.ESPALIER_REQUIRE_BASE) throw error
    console.warn(`SKIPPED: the training trajectory needs the real base (${(error as Error).message})`)
    return
  }
  runtime = await openRuntime()
  base = await loadBase(runtime, opened)
}, 600_000)
afterAll(async () => {
  base?.close()
  await runtime?.close()
  rmSync(folder, { recursive: true, force: true })
})

async function openProgram(adapter: RunAdapter): Promise<TrainProgram> {
  const { layout } = adapter
  const program = await openTrainProgram({
    base: base!,
    layout,
    adapter: layout.adapter,
    maxTokens,
    precision: 'strict',
  })
  adapter.fill(program.params)
  return program
}

it('trains as the reference does', { timeout: 600_000 }, async ({ skip }) => {
  if (!base) return skip('the base is not there')
  const adapter = openAdapter(opened, { lora: {}, startAdapter: sft('adapter-start'), seed: 0, baseName: 'golden' })
  const program = await openProgram(adapter)
  const { layout } = adapter
  const tensorOf = (name: string) => layout.tensors.find((tensor) => tensor.name === name)!
  const { settings, steps } = trajectory
  const heldOut = () => evaluateLoss(program, [toDocument(batches.held_out)], { maxTokens })
  expect(Math.abs((await heldOut()).loss - trajectory.eval_loss_before)).toBeLessThanOrEqual(1e-4)

  const start = program.params.slice()
  let index = 0
  const seen: StepEvent[] = []
  await trainOffline({
    program,
    loader: {
      async next() {
        const given = batches.steps[index++]
        if (!given) return undefined
        return {
          microBatches: given.micro_batches.map(({ documents }) => toBatch(documents)),
          targetTokens: given.target_tokens,
          epoch: index / batches.steps.length,
          step: index,
        }
      },
      getState: () => index,
      setState: () => {},
    },
    totalSteps: steps.length,
    learningRate: (step) => steps[step]!.learning_rate,
    optimizer: {
      beta1: settings.betas[0],
      beta2: settings.betas[1],
      epsilon: settings.eps,
      weightDecay: settings.weight_decay,
      maxGradNorm: settings.max_grad_norm,
    },
    seed: 0,
    emit: (event) => {
      if (event.type !== 'step') return
      seen.push(event)
      const expected = steps[event.step - 1]!
      // The accumulator holds the gradient before clipping until the next step begins
      for (const [name, value] of Object.entries(expected.grad_l2)) {
        expectRelative(
          norm(viewTensor(program.grads, tensorOf(name))),
          value,
          1e-3,
          `step ${event.step}, gradient of ${name}`,
        )
      }
      for (const [name, value] of Object.entries(expected.param_l2)) {
        expectRelative(norm(viewTensor(program.params, tensorOf(name))), value, 1e-4, `step ${event.step}, ${name}`)
      }
      if (event.step === 1) compareGradients(program, tensorOf)
    },
  })
  expect(seen).toHaveLength(steps.length)
  for (const [i, expected] of steps.entries()) {
    expect(seen[i]!.targetTokens).toBe(expected.target_tokens)
    expect(Math.abs(seen[i]!.loss - expected.loss), `loss of step ${i + 1}`).toBeLessThanOrEqual(1e-4)
    expectRelative(seen[i]!.gradNorm, expected.grad_norm, 1e-3, `gradient norm of step ${i + 1}`)
  }
  expect(Math.abs((await heldOut()).loss - trajectory.eval_loss_after)).toBeLessThanOrEqual(1e-4)

  const end = openAdapter(opened, { lora: {}, startAdapter: sft('adapter-end'), seed: 0, baseName: 'golden' })
  const expected = new Float32Array(layout.length)
  end.fill(expected)
  const update = norm(expected.map((x, i) => x - start[i]!))
  const difference = norm(expected.map((x, i) => x - program.params[i]!))
  expect(difference / update).toBeLessThanOrEqual(1e-2)
  program.close()
})

function compareGradients(program: TrainProgram, tensorOf: (name: string) => Parameters<typeof viewTensor>[1]) {
  const file = openSafetensors(sft('gradients-step-1.safetensors'))
  try {
    for (const [name, entry] of file.tensors) {
      const bytes = file.read(entry)
      const expected = new Float32Array(bytes.slice().buffer)
      const actual = viewTensor(program.grads, tensorOf(name))
      const difference = norm(expected.map((x, i) => x - actual[i]!))
      expect(difference / norm(expected), `gradient of ${name}`).toBeLessThanOrEqual(1e-3)
    }
  } finally {
    file.close()
  }
}

describe('adapter variants on one micro-batch', () => {
  const golden = read('variants.json') as {
    micro_batch: { step: number; index: number }
    target_tokens: number
    variants: Record<string, { scaling?: number; loss: number; grad_norm?: number; grad_l2?: Record<string, number> }>
  }
  /** What the name of a variant says about an adapter; those with words not listed are skipped. */
  const words: Record<string, Record<string, boolean>> = {
    lora: {},
    rslora: { use_rslora: true },
    dora: { use_dora: true },
  }
  for (const [name, expected] of Object.entries(golden.variants)) {
    const parts = name.split('_')
    if (name !== 'no_adapter' && parts.some((part) => !(part in words))) {
      it.skip(`${name}: not among our adapters`, () => {})
      continue
    }
    it(name, { timeout: 300_000 }, async ({ skip }) => {
      if (!base) return skip('the base is not there')
      const { step, index } = golden.micro_batch
      const batch = toBatch(batches.steps[step - 1]!.micro_batches[index]!.documents)
      const flags = Object.assign({}, ...parts.map((part) => words[part]))
      const adapter = variantOf(name, flags)
      const program = await openProgram(adapter)
      if (name === 'no_adapter') {
        const { values } = await program.score(batch, { model: 'base' })
        const nll = -values.reduce((a, b) => a + b, 0) / values.length
        expect(Math.abs(nll - expected.loss)).toBeLessThanOrEqual(1e-4)
        return program.close()
      }
      const result = await program.accumulate(batch, { first: true, lossScale: 1 / golden.target_tokens, rngStep: 1 })
      expect(result.tokens).toBe(golden.target_tokens)
      expect(Math.abs(result.lossSum - expected.loss)).toBeLessThanOrEqual(1e-4)
      expectRelative(norm(program.grads), expected.grad_norm!, 1e-3, 'gradient norm')
      for (const [key, value] of Object.entries(expected.grad_l2!)) {
        // The magnitude carries a `.weight` in memory and none in files
        const ours = key.replace(/lora_magnitude_vector\.weight$/, 'lora_magnitude_vector')
        const tensor = adapter.layout.tensors.find((candidate) => candidate.name === ours)!
        expectRelative(norm(viewTensor(program.grads, tensor)), value, 1e-3, key)
      }
      program.close()
    })
  }

  /** The start adapter's A and B under another configuration; DoRA's magnitudes are those of the base (B = 0). */
  function variantOf(name: string, flags: Record<string, boolean>): RunAdapter {
    const config = JSON.parse(readFileSync(sft('adapter-start', peftFiles.config), 'utf8'))
    const lora = {
      rank: config.r,
      alpha: config.lora_alpha,
      targetModules: config.target_modules,
      useRslora: flags.use_rslora ?? false,
      useDora: flags.use_dora ?? false,
    }
    const fresh = openAdapter(opened, { lora, seed: 0, baseName: name })
    const start = openAdapter(opened, { lora: {}, startAdapter: sft('adapter-start'), seed: 0, baseName: name })
    const values = new Float32Array(start.layout.length)
    start.fill(values)
    return {
      ...fresh,
      fill(params) {
        fresh.fill(params)
        for (const tensor of start.layout.tensors) {
          const own = fresh.layout.tensors.find((candidate) => candidate.name === tensor.name)!
          viewTensor(params, own).set(viewTensor(values, tensor))
        }
      },
    }
  }
})

it('writes an adapter that reads back the same', ({ skip }) => {
  if (!base) return skip('the base is not there')
  const adapter = openAdapter(opened, { lora: {}, startAdapter: sft('adapter-end'), seed: 0, baseName: 'golden' })
  const values = new Float32Array(adapter.layout.length)
  adapter.fill(values)
  const out = join(folder, 'adapter')
  adapter.save(out, values)
  expect(existsSync(join(out, peftFiles.weights))).toBe(true)
  writeFileSync(join(out, 'README.md'), '')
  const again = openAdapter(opened, { lora: {}, startAdapter: out, seed: 0, baseName: 'golden' })
  const copy = new Float32Array(again.layout.length)
  again.fill(copy)
  expect(Buffer.from(copy.buffer).equals(Buffer.from(values.buffer))).toBe(true)
})
