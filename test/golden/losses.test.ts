// Optimizer, clipping, schedules, token losses and the fused head against the reference values: lowered in float64,
// and with our kernels in fp32 where they are built. Cases whose type is absent from our index maps are skipped and
// listed.
import { describe, expect, it } from 'vitest'
import { backward } from '../../src/compiler/autodiff.js'
import type { Graph } from '../../src/compiler/graph.js'
import { adamW } from '../../src/compiler/ops/adamw.js'
import { linearLogProb } from '../../src/compiler/ops/linear-log-prob.js'
import { scalar } from '../../src/compiler/ops/tensor.js'
import { weightLeaf } from '../../src/compiler/ops/weight.js'
import { type LossName, losses } from '../../src/training/losses/index.js'
import { optimizers } from '../../src/training/optimizers.js'
import { learningRateAt, scheduleSchema, schedules } from '../../src/training/schedules.js'
import { camel, expectClose, flat, type Nested, openKernels, readLosses, targets, tolerances } from './compare.js'
import { runGraph, type Target } from './run-graph.js'

const kernels = openKernels('golden losses')

describe('schedules', () => {
  const golden = readLosses('optim.json').schedules as {
    baseLr: number
    warmupSteps: number
    trainingSteps: number
    cases: { label: string; name: string; arguments: Record<string, unknown>; lr: number[]; lrAfterLastStep: number }[]
  }
  for (const { label, name, arguments: given, lr, lrAfterLastStep } of golden.cases) {
    it.skipIf(!(name in schedules))(label, () => {
      const options = Object.fromEntries(Object.entries(given).map(([key, value]) => [camel(key), value]))
      const schedule = scheduleSchema.parse({ type: name, ...options })
      const context = {
        baseLearningRate: golden.baseLr,
        warmupSteps: golden.warmupSteps,
        totalSteps: golden.trainingSteps,
      }
      const rates = [...lr, lrAfterLastStep].map((_, step) => learningRateAt(step, schedule, context))
      expectClose(rates, [...lr, lrAfterLastStep], 1e-12, 'entry')
    })
  }
})

interface AdamState {
  params: number[]
  m: number[]
  v: number[]
  gradNorm: number
}
interface AdamSettings {
  lr: number
  beta1: number
  beta2: number
  eps: number
  weightDecay: number
  maxGradNorm: number | null
}

/** One update through the op, as a graph of its own. */
async function adamStep(
  state: Omit<AdamState, 'gradNorm'>,
  grads: number[],
  step: number,
  at: AdamSettings,
  target: Target,
) {
  const length = grads.length
  const out = await runGraph({
    target,
    runtime: kernels.runtime,
    inputs: {
      ...state,
      grads,
      hyper: [at.lr, at.beta1, at.beta2, at.eps, 1 - at.beta1 ** step, 1 - at.beta2 ** step, at.maxGradNorm ?? 0, 0],
      groups: [0, length],
      groupHyper: [1, at.weightDecay],
    },
    build(g) {
      const leaf = (name: string) => g.leaf(name, 'state', g.floatType, [length])
      const updated = adamW(
        { params: leaf('params'), grads: leaf('grads'), m: leaf('m'), v: leaf('v') },
        g.leaf('hyper', 'input', g.floatType, [8]),
        g.leaf('groups', 'input', 'i64', [1, 2]),
        g.leaf('groupHyper', 'input', g.floatType, [1, 2]),
        [{ offset: 0, length }],
      )
      for (const key of ['params', 'm', 'v'] as const) g.updates.set(key, updated[key])
      g.output('gradNorm', updated.gradNorm)
    },
  })
  return { params: out.params!, m: out.m!, v: out.v!, gradNorm: out.gradNorm![0]! }
}

describe.each(targets)('optimizers, %s', (target) => {
  const golden = readLosses('optim.json')
  const tolerance = target === 'lowered' ? 1e-12 : 1e-6
  for (const type of ['adamw', 'adam8bit', 'loraPlus']) {
    if (!(type in golden) || type in optimizers) continue
    it.skip(`${type}: not in the index map`, () => {})
  }
  for (const [index, given] of (
    golden.adamw.cases as (AdamSettings & { steps: Record<string, Nested>[] })[]
  ).entries()) {
    it.skipIf(!('adamw' in optimizers))(`adamw case ${index}`, async ({ skip }) => {
      kernels.skipUnlessBuilt(target, skip)
      const zeros = golden.adamw.initial.map(() => 0)
      let state: AdamState = { params: golden.adamw.initial, m: zeros, v: zeros, gradNorm: 0 }
      for (const [i, expected] of given.steps.entries()) {
        state = await adamStep(state, golden.adamw.gradients[i], i + 1, given, target)
        expectClose(state.params, flat(expected.params!), tolerance, 'largest')
        if (typeof expected.gradNorm === 'number')
          expectClose([state.gradNorm], [expected.gradNorm], tolerance, 'entry')
      }
    })
  }
  for (const [index, { maxNorm, totalNorm, clipped }] of golden.clipping.cases.entries()) {
    it(`clipping case ${index}`, async ({ skip }) => {
      kernels.skipUnlessBuilt(target, skip)
      const names = Object.keys(golden.clipping.gradients)
      const grads = names.flatMap((name) => golden.clipping.gradients[name] as number[])
      const zeros = grads.map(() => 0)
      // With beta1 = 0 the first moment is the clipped gradient itself
      const settings = { lr: 0.001, beta1: 0, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: maxNorm }
      const { m, gradNorm } = await adamStep({ params: zeros, m: zeros, v: zeros }, grads, 1, settings, target)
      expectClose([gradNorm], [totalNorm], tolerance, 'entry')
      expectClose(
        m,
        names.flatMap((name) => flat(clipped[name])),
        tolerance,
        'largest',
      )
    })
  }
})

interface HeadRun {
  hidden: number[]
  W: number[]
  sizes: { N: number; D: number; V: number }
  labels: number[]
  temperature?: number
  logitScale?: number
  softcap?: number
  dLogps?: number[]
  dEntropy?: number[]
  dLse?: number[]
  /** A loss of ours over the rows, with their weights: its gradient is the incoming one. */
  loss?: { name: LossName; weights: number[] }
}

/** logps, entropy, lse of every row and dHidden for the given incoming gradients. */
async function runHead(run: HeadRun, target: Target) {
  const { N, D, V } = run.sizes
  const upstream = { logps: run.dLogps, entropy: run.dEntropy, lse: run.dLse }
  const inputs: Record<string, number[]> = {
    hidden: run.hidden,
    W: run.W,
    labels: run.labels,
    lossRows: run.labels.map((_, i) => i),
  }
  if (run.temperature !== undefined) inputs.temperature = [run.temperature]
  if (run.loss) inputs.weights = run.loss.weights
  for (const [name, values] of Object.entries(upstream)) if (values) inputs[`d.${name}`] = values
  return runGraph({
    target,
    runtime: kernels.runtime,
    inputs,
    build(g: Graph) {
      const h = g.leaf('hidden', 'input', g.floatType, [N, D])
      const weight = weightLeaf(g, 'W', 'f32', 32, V, D)
      const head = linearLogProb(
        h,
        weight,
        g.leaf('labels', 'input', 'i32', [N]),
        g.leaf('lossRows', 'input', 'i32', [N]),
        {
          temperature: run.temperature === undefined ? undefined : g.leaf('temperature', 'input', g.floatType, [1]),
          logitScale: run.logitScale,
          softcap: run.softcap,
        },
      )
      const seeds = new Map(
        (Object.keys(upstream) as (keyof typeof upstream)[])
          .filter((name) => upstream[name])
          .map((name) => [head[name], g.leaf(`d.${name}`, 'input', g.floatType, [N])]),
      )
      for (const name of ['logps', 'entropy', 'lse'] as const) g.output(name, head[name])
      if (run.loss) {
        const value = losses[run.loss.name].build(head.logps, g.leaf('weights', 'input', g.floatType, [N]))
        g.output('loss', value)
        seeds.set(value, scalar(g, 1, g.floatType))
      }
      if (seeds.size > 0) g.output('dHidden', backward(g, seeds, [h]).get(h)!)
    },
  })
}

describe.each(targets)('token losses, %s', (target) => {
  const golden = readLosses('token.json')
  const { B, T, V } = golden.shape as Record<'B' | 'T' | 'V', number>
  const N = B * T
  const labels = flat(golden.labels)
  const isTarget = labels.map((label) => label !== -100)
  const count = isTarget.filter(Boolean).length
  const allowed = tolerances.logits[target]
  const identity = Array.from({ length: V * V }, (_, i) => (i % (V + 1) === 0 ? 1 : 0))
  // Logits are hidden states under an identity head
  const base = { hidden: flat(golden.logits), W: identity, sizes: { N, D: V, V }, labels }
  const values = (actual: number[], expected: Nested) =>
    expectClose(actual, flat(expected), allowed.value, allowed.valueScale)
  const gradients = (actual: number[], expected: Nested) =>
    expectClose(actual, flat(expected), allowed.gradient, allowed.gradientScale)

  for (const given of golden.cases) {
    it(`temperature ${given.temperature}`, async ({ skip }) => {
      kernels.skipUnlessBuilt(target, skip)
      const options = { ...base, temperature: given.temperature as number }
      const weights = (tokens: number) => isTarget.map((is) => (is ? 1 / tokens : 0))
      const ce = await runHead({ ...options, loss: { name: 'crossEntropy', weights: weights(count) } }, target)
      values(ce.logps!, given.tokenLogps)
      values(ce.entropy!, given.entropy)
      // The sequence sums and means that later stages take
      for (let b = 0; b < B; b++) {
        const row = ce.logps!.slice(b * T, (b + 1) * T)
        const sum = row.reduce((x, y) => x + y, 0)
        const targetsOfRow = isTarget.slice(b * T, (b + 1) * T).filter(Boolean).length
        expect(targetsOfRow).toBe(given.sequenceCounts[b])
        values([sum / targetsOfRow], [given.sequenceMeans[b]])
      }
      values(ce.loss!, given.crossEntropy)
      gradients(ce.dHidden!, given.gradCrossEntropy)
      const { numItemsInBatch, value } = given.crossEntropyNumItems
      const cut = await runHead(
        { ...options, loss: { name: 'crossEntropy', weights: weights(numItemsInBatch) } },
        target,
      )
      values(cut.loss!, value)

      const weighted = await runHead(
        { ...options, dLogps: flat(golden.weights).map((w, i) => (isTarget[i] ? w : 0)) },
        target,
      )
      gradients(weighted.dHidden!, given.gradWeightedSum)
      const entropy = await runHead({ ...options, dEntropy: isTarget.map((is) => (is ? 1 / count : 0)) }, target)
      gradients(entropy.dHidden!, given.gradMeanEntropy)
    })
  }

  it('z-loss: the gradient through the log-sum-exp', async ({ skip }) => {
    kernels.skipUnlessBuilt(target, skip)
    const { lse } = await runHead(base, target)
    values(lse!, golden.zLoss.logsumexp)
    const run = await runHead({ ...base, dLse: lse!.map((z, i) => (isTarget[i] ? (2 * z) / count : 0)) }, target)
    gradients(run.dHidden!, golden.zLoss.gradMeanSquare)
  })

  it('logit scale and softcap', async ({ skip }) => {
    kernels.skipUnlessBuilt(target, skip)
    const { logitScale, softcap, tokenLogps, loss, gradLogits } = golden.softcap
    const dLogps = isTarget.map((is) => (is ? -1 / count : 0))
    const run = await runHead({ ...base, logitScale, softcap, dLogps }, target)
    values(run.logps!, tokenLogps)
    values([-run.logps!.reduce((a, b) => a + b, 0) / count], [loss])
    gradients(run.dHidden!, gradLogits)
  })

  it('a fully masked batch: loss 0, gradient 0', async ({ skip }) => {
    kernels.skipUnlessBuilt(target, skip)
    const masked = { ...base, labels: flat(golden.fullyMasked.labels) }
    const run = await runHead({ ...masked, dLogps: new Array(N).fill(-1) }, target)
    expect(run.logps!.every((x) => x === 0)).toBe(true)
    expect(run.dHidden!.every((x) => x === 0)).toBe(golden.fullyMasked.gradIsZero)
  })

  for (const name of ['dft'])
    if (name in golden && !(name in losses)) it.skip(`${name}: not in the index map`, () => {})
})

describe.each(targets)('fused head, %s', (target) => {
  const golden = readLosses('fused.json')
  const allowed = tolerances.logits[target]
  const labels = golden.labels as number[]
  const isTarget = labels.map((label) => label !== -100)
  const count = isTarget.filter(Boolean).length
  const base = { hidden: flat(golden.hidden), W: flat(golden.W), sizes: golden.shape, labels }

  for (const given of golden.cases) {
    it(given.name, async ({ skip }) => {
      kernels.skipUnlessBuilt(target, skip)
      const run = await runHead(
        {
          ...base,
          temperature: given.temperature ?? undefined,
          logitScale: given.logitScale ?? undefined,
          softcap: given.softcap ?? undefined,
          dLogps: isTarget.map((is) => (is ? -1 / count : 0)),
        },
        target,
      )
      expectClose(run.logps!, given.tokenLogps, allowed.value, allowed.valueScale)
      expectClose(run.entropy!, given.entropy, allowed.value, allowed.valueScale)
      expectClose([-run.logps!.reduce((a, b) => a + b, 0) / count], [given.loss], allowed.value, allowed.valueScale)
      expectClose(run.dHidden!, flat(given.dHidden), allowed.gradient, allowed.gradientScale)
    })
  }

  it('from given gradients of the token log-probabilities', async ({ skip }) => {
    kernels.skipUnlessBuilt(target, skip)
    const dLogps = golden.upstream.gradTokenLogps as number[]
    const run = await runHead({ ...base, dLogps }, target)
    const value = run.logps!.reduce((sum, logp, i) => sum + dLogps[i]! * logp, 0)
    expectClose([value], [golden.upstream.value], allowed.value * 10, 'absolute')
    expectClose(run.dHidden!, flat(golden.upstream.dHidden), allowed.gradient, allowed.gradientScale)
  })

  it.skip('dW: the head is frozen and has no gradient', () => {})
})
