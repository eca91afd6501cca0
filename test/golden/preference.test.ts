// Preference losses over pairs and over single completions against the reference values, with their metrics: lowered in
// float64, and in fp32 with our kernels. Every case of the file is run; none is named here.
import { describe, expect, it } from 'vitest'
import { backward } from '../../src/compiler/autodiff.js'
import type { Dim, Graph, Value } from '../../src/compiler/graph.js'
import { mul, scale, sub } from '../../src/compiler/ops/elementwise.js'
import { linearLogProb } from '../../src/compiler/ops/linear-log-prob.js'
import { reduceSum } from '../../src/compiler/ops/reduce.js'
import { scalar } from '../../src/compiler/ops/tensor.js'
import { weightLeaf } from '../../src/compiler/ops/weight.js'
import {
  buildMixture,
  type PreferenceLossName,
  type PreferenceTerm,
  policyScoreOf,
  preferenceLosses,
  preferenceLossNames,
  preferenceLossSchema,
  termsOf,
} from '../../src/training/losses/preference/index.js'
import { ldWeights } from '../../src/training/losses/preference/length-desensitized.js'
import type { PreferenceLoss } from '../../src/training/losses/preference/preference-loss.js'
import { sumBySequence } from '../../src/training/losses/preference/sequence-sums.js'
import { wpoWeights } from '../../src/training/losses/preference/wpo-weights.js'
import { type UnpairedLossName, unpairedLosses } from '../../src/training/losses/unpaired/index.js'
import { estimateKl, rotateCompletions } from '../../src/training/losses/unpaired/kl-estimate.js'
import { unpairedOptions } from '../../src/training/losses/unpaired/unpaired-loss.js'
import { implicitRewards, preferenceMetrics, unpairedMetrics } from '../../src/training/preference-metrics.js'
import { camel, expectClose, flat, openKernels, readLosses, targets, tolerances } from './compare.js'
import { runGraph, type Target } from './run-graph.js'

const golden = readLosses('preference.json')
const kernels = openKernels('golden preference losses')
const lossOf = (type: string) => preferenceLosses[type as PreferenceLossName] as PreferenceLoss
const sum = (values: ArrayLike<number>) => Array.from(values).reduce((a, b) => a + b, 0)
const mean = (values: ArrayLike<number>) => sum(values) / values.length

/** The vectors over pairs that a loss may read, by the names of `PairValues`; what is absent is null there. */
interface Batch {
  chosenLogps: number[]
  rejectedLogps: number[]
  refChosenLogps: number[]
  refRejectedLogps: number[]
  chosenLengths: number[]
  rejectedLengths: number[]
  promptLogps?: number[]
  promptLengths?: number[]
}
interface Case {
  type: string
  beta: number
  loss: number
  metrics?: Record<string, number>
  [field: string]: unknown
}
type Numbers = Record<string, number[]>

/** A batch by its name, with its prompts where there are any. */
function batchNamed(name: unknown): Batch {
  const all = [...golden.batches, golden.extreme.batch, ...golden.orpo.prompts] as { name?: string; batch?: string }[]
  return Object.assign({}, ...all.filter((given) => (given.name ?? given.batch) === name))
}

/** A graph's leaves of its float type, made with their values. */
function leaves(g: Graph, inputs: Numbers) {
  return (name: string, values: number[], shape: readonly Dim[] = ['P']) => {
    inputs[name] = values
    return g.leaf(name, 'input', g.floatType, shape)
  }
}

/** `summed` replaces vectors of the batch by values of the graph. */
function pairValues(leaf: ReturnType<typeof leaves>, batch: Batch, summed: Partial<Record<keyof Batch, Value>> = {}) {
  const vector = (name: keyof Batch) => summed[name] ?? leaf(name, batch[name]!)
  return {
    chosenLogps: vector('chosenLogps'),
    rejectedLogps: vector('rejectedLogps'),
    refChosenLogps: vector('refChosenLogps'),
    refRejectedLogps: vector('refRejectedLogps'),
    chosenLengths: vector('chosenLengths'),
    rejectedLengths: vector('rejectedLengths'),
    promptLogps: batch.promptLogps ? vector('promptLogps') : null,
    promptLengths: batch.promptLengths ? vector('promptLengths') : null,
    meanChosenLength: leaf('meanChosenLength', [mean(batch.chosenLengths)], [1]),
    meanPromptLength: batch.promptLengths ? leaf('meanPromptLength', [mean(batch.promptLengths)], [1]) : null,
  }
}

/** Outputs the mean over `size` entries as `loss`, and its gradients where it depends on the values. */
function outputMean(g: Graph, losses: Value, size: number, wanted: Record<string, Value | null>) {
  const loss = scale(reduceSum(losses, [0]), 1 / size)
  g.output('loss', loss)
  const values = Object.values(wanted).filter((value) => value !== null)
  const gradients = backward(g, new Map([[loss, scalar(g, 1, g.floatType)]]), values)
  for (const [name, value] of Object.entries(wanted)) {
    const gradient = value && gradients.get(value)
    if (gradient) g.output(name, gradient)
  }
}

function checks(target: Target, from: keyof typeof tolerances = 'logps') {
  const allowed = tolerances[from][target]
  return {
    values: (actual: ArrayLike<number>, expected: ArrayLike<number>) =>
      expectClose(actual, expected, allowed.value, allowed.valueScale),
    /** An absent gradient is zero. */
    gradients: (actual: ArrayLike<number> | undefined, expected: ArrayLike<number>) =>
      expectClose(actual ?? Array.from(expected, () => 0), expected, allowed.gradient, allowed.gradientScale),
  }
}

// Options that the file names otherwise, and those that it writes for every loss where they say nothing.
const ours: Record<string, string> = { fDivergence: 'divergence', fAlpha: 'alpha', discopopTau: 'tau' }
const silent: Record<string, unknown> = { labelSmoothing: 0 }
const notOptions = new Set(['batch', 'type', 'beta', 'ldAlpha', 'gamma'])

/** The loss that a case is about, through the schema of recipes: each of its options must be one of the loss. */
function termOf(given: Case, type: string = given.type, more: object = {}): PreferenceTerm {
  const options: Record<string, unknown> = { ...more }
  for (const [field, value] of Object.entries(given)) {
    const name = ours[field] ?? field
    const isSetting = ['number', 'string'].includes(typeof value) && !/[lL]oss$/.test(field) && !notOptions.has(field)
    const says = name in lossOf(type).options.shape || value !== silent[field]
    if (isSetting && says) options[name] = value
  }
  return termsOf(preferenceLossSchema.parse({ type, ...options } as never))[0]!
}

/** The file counts SimPO among the variants of CPO. */
function cpoTerm(given: Case): PreferenceTerm {
  const { variant } = preferenceLosses.cpo.options.shape
  return variant.safeParse(given.type).success ? termOf(given, 'cpo', { variant: given.type }) : termOf(given)
}

/** Everything that a case states. `hasReference`: its metrics are of log-ratios. */
async function check(given: Case, terms: PreferenceTerm[], target: Target, hasReference = true) {
  const batch = batchNamed(given.batch)
  const { beta } = given
  const inputs: Numbers = {}
  const metricNames = new Set<string>()
  const out = await runGraph({
    target,
    runtime: kernels.runtime,
    inputs,
    dims: { P: batch.chosenLogps.length },
    build(g) {
      const pairs = pairValues(leaves(g, inputs), batch)
      const perPair = buildMixture(pairs, terms, beta)
      g.output('perPair', perPair)
      for (const { type, options } of terms)
        for (const [name, value] of Object.entries(lossOf(type).metrics?.(pairs, { ...options, beta }) ?? {})) {
          metricNames.add(name)
          g.output(name, value)
        }
      outputMean(g, perPair, batch.chosenLogps.length, {
        gradChosenLogps: pairs.chosenLogps,
        gradRejectedLogps: pairs.rejectedLogps,
        gradPromptLogps: pairs.promptLogps,
      })
    },
  })
  const { values, gradients } = checks(target)
  for (const numbers of Object.values(out)) expect(numbers.every(Number.isFinite)).toBe(true)
  values(out.loss!, [given.loss])
  if (given.perPair && !terms.some(({ type }) => lossOf(type).averagesTokens))
    values(out.perPair!, given.perPair as number[])
  for (const [name, expected] of Object.entries(given))
    if (name.startsWith('grad')) gradients(out[name], expected as number[])

  const rewards = (side: 'chosen' | 'rejected') => {
    const reference = { chosen: batch.refChosenLogps, rejected: batch.refRejectedLogps }[side]
    const completions = {
      logps: batch[`${side}Logps`],
      refLogps: hasReference ? reference : null,
      lengths: batch[`${side}Lengths`],
    }
    return implicitRewards(completions, beta, policyScoreOf(terms))
  }
  const metrics: Record<string, number> = {
    ...preferenceMetrics({ ...batch, chosenRewards: rewards('chosen'), rejectedRewards: rewards('rejected') }),
    ...Object.fromEntries([...metricNames].map((name) => [name, mean(out[name]!)])),
  }
  for (const [name, expected] of Object.entries(given.metrics ?? {})) {
    if (name === 'rewards/accuracies') expect(metrics[name]).toBe(expected)
    // A term that the loss leaves out is 0 in the file
    else values([metrics[camel(name)] ?? 0], [expected])
  }
}

/** One test a case, named by its settings. */
function eachCase(name: string, cases: Case[], run: (given: Case) => Promise<void>, target: Target) {
  const settings = (given: Case) =>
    Object.entries(given)
      .filter(([, value]) => ['number', 'string'].includes(typeof value))
      .map((entry) => entry.join(' '))
      .join(', ')
  describe(name, () => {
    for (const [i, given] of cases.entries())
      it(`${i}: ${settings(given)}`, async ({ skip }) => {
        kernels.skipUnlessBuilt(target, skip)
        await run(given)
      })
  })
}

describe.each(targets)('preference losses, %s', (target) => {
  const one = (given: Case) => check(given, [termOf(given)], target)
  eachCase('losses', golden.losses, one, target)
  eachCase('extreme', golden.extreme.losses, one, target)
  eachCase('fDivergences', golden.fDivergences, one, target)
  eachCase('orpo', golden.orpo.cases, (given) => check(given, [termOf(given, 'orpo')], target, false), target)
  eachCase('cpo', golden.cpo.cases, (given) => check(given, [cpoTerm(given)], target, false), target)

  const mixed = async (given: Case) => {
    const weights = given.weights as number[]
    const terms = (given.types as PreferenceLossName[]).map((type, i) => ({ type, weight: weights[i] }))
    await check(given, termsOf(preferenceLossSchema.parse(terms)), target)
  }
  eachCase('mixture', golden.mixture, mixed, target)
})

it('the implicit rewards of each pair', () => {
  for (const { batch: name, beta, chosen, rejected } of golden.rewards) {
    const { chosenLogps, refChosenLogps, chosenLengths, ...batch } = batchNamed(name)
    const side = { logps: chosenLogps, refLogps: refChosenLogps, lengths: chosenLengths }
    expectClose(implicitRewards(side, beta), chosen, 1e-12, 'entry')
    const other = { logps: batch.rejectedLogps, refLogps: batch.refRejectedLogps, lengths: batch.rejectedLengths }
    expectClose(implicitRewards(other, beta), rejected, 1e-12, 'entry')
  }
})

it('another divergence is refused where the loss is not defined for it', () => {
  const takesOne = new Set<string>(golden.fDivergences.map((given: Case) => given.type))
  const { fDivergence: divergence } = golden.fDivergences[0]
  for (const type of preferenceLossNames) {
    const { success } = preferenceLossSchema.safeParse({ type, divergence } as never)
    expect(success, type).toBe(takesOne.has(type))
  }
})

/** Rows of consecutive sequences as a matrix [P, M], weighted by `weightsOf(p)`. */
function membershipOf(lengths: number[], before: number, rows: number, weightsOf: (p: number) => ArrayLike<number>) {
  let at = before
  return lengths.flatMap((length, p) => {
    const row = new Array<number>(rows).fill(0)
    row.splice(at, length, ...Array.from(weightsOf(p)))
    at += length
    return row
  })
}

describe.each(targets)('length-desensitized sums, %s', (target) => {
  const tokens: Record<string, number[][]> = golden.ldAlpha
  const lengths = (side: number[][]) => side.map((row) => row.length)
  const chosenLengths = lengths(tokens.chosenTokenLogps!)
  const rejectedLengths = lengths(tokens.rejectedTokenLogps!)
  const [C, R] = [sum(chosenLengths), sum(rejectedLengths)]

  const run = async (given: Case) => {
    const weights = {
      chosen: (p: number) => ldWeights(chosenLengths[p]!, rejectedLengths[p]!, given.ldAlpha as number),
      rejected: (p: number) => ldWeights(rejectedLengths[p]!, chosenLengths[p]!, given.ldAlpha as number),
    }
    const summed = (rows: number[][], of: (p: number) => Float32Array) =>
      rows.map((row, p) => sum(row.map((logp, t) => of(p)[t]! * logp)))
    const batch = {
      chosenLogps: [],
      rejectedLogps: [],
      refChosenLogps: summed(tokens.refChosenTokenLogps!, weights.chosen),
      refRejectedLogps: summed(tokens.refRejectedTokenLogps!, weights.rejected),
      chosenLengths,
      rejectedLengths,
    }
    const inputs: Numbers = {}
    const out = await runGraph({
      target,
      runtime: kernels.runtime,
      inputs,
      dims: { P: chosenLengths.length, M: C + R },
      build(g) {
        const leaf = leaves(g, inputs)
        const logps = leaf('logps', [...flat(tokens.chosenTokenLogps!), ...flat(tokens.rejectedTokenLogps!)], ['M'])
        const rows = (name: string, of: number[], before: number, weightsOf: (p: number) => ArrayLike<number>) =>
          sumBySequence(leaf(name, membershipOf(of, before, C + R, weightsOf), ['P', 'M']), logps)
        const chosenLogps = rows('chosenRows', chosenLengths, 0, weights.chosen)
        const rejectedLogps = rows('rejectedRows', rejectedLengths, C, weights.rejected)
        g.output('chosenLogps', chosenLogps)
        g.output('rejectedLogps', rejectedLogps)
        const pairs = pairValues(leaf, batch, { chosenLogps, rejectedLogps })
        outputMean(g, buildMixture(pairs, [termOf(given)], given.beta), chosenLengths.length, { dLogps: logps })
      },
    })
    const { values, gradients } = checks(target)
    const actual: Record<string, ArrayLike<number>> = { ...batch, ...out }
    for (const name of ['chosenLogps', 'rejectedLogps', 'refChosenLogps', 'refRejectedLogps'])
      values(actual[name]!, given[name] as number[])
    values(out.loss!, [given.loss])
    gradients(out.dLogps!.slice(0, C), flat(given.gradChosenTokenLogps as number[][]))
    gradients(out.dLogps!.slice(C), flat(given.gradRejectedTokenLogps as number[][]))
  }
  eachCase('ldAlpha', golden.ldAlpha.cases, run, target)
})

describe.each(targets)('WPO, %s', (target) => {
  const { chosenLabels, rejectedLabels } = golden.wpo as Record<string, number[][]>
  const labels = [...flat(chosenLabels!), ...flat(rejectedLabels!)]
  const lossRows = labels.flatMap((label, row) => (label >= 0 ? [row] : []))
  const lengthsOf = (side: number[][]) => side.map((row) => row.filter((label) => label >= 0).length)
  const chosenLengths = lengthsOf(chosenLabels!)
  const rejectedLengths = lengthsOf(rejectedLabels!)
  const logits = [...flat(golden.wpo.chosenLogits), ...flat(golden.wpo.rejectedLogits)]
  const [N, M, P] = [labels.length, lossRows.length, chosenLengths.length]
  const V = logits.length / N

  const run = async (given: Case) => {
    // Logits are hidden states under an identity head
    const inputs: Numbers = {
      W: Array.from({ length: V * V }, (_, i) => (i % (V + 1) === 0 ? 1 : 0)),
      lossRows,
      labels: lossRows.map((row) => labels[row]!),
    }
    const batch = {
      chosenLogps: [],
      rejectedLogps: [],
      refChosenLogps: golden.wpo.refChosenLogps,
      refRejectedLogps: golden.wpo.refRejectedLogps,
      chosenLengths,
      rejectedLengths,
    }
    const out = await runGraph({
      target,
      runtime: kernels.runtime,
      inputs,
      dims: { P, M, N },
      build(g) {
        const leaf = leaves(g, inputs)
        const hidden = leaf('logits', logits, ['N', V])
        const head = (temperature?: Value) =>
          linearLogProb(
            hidden,
            weightLeaf(g, 'W', 'f32', 32, V, V),
            g.leaf('labels', 'input', 'i32', ['M']),
            g.leaf('lossRows', 'input', 'i32', ['M']),
            { temperature },
          )
        const { logps, lse } = head()
        // log Σ p² = log Σ e^(2z) − 2 log Σ e^z
        const atHalf = head(leaf('temperature', [0.5], [1]))
        const logSumSquares = sub(atHalf.lse, scale(lse, 2))
        const rows = (name: string, of: number[], before: number) =>
          leaf(
            name,
            membershipOf(of, before, M, (p) => new Array(of[p]!).fill(1)),
            ['P', 'M'],
          )
        const chosenRows = rows('chosenRows', chosenLengths, 0)
        const rejectedRows = rows('rejectedRows', rejectedLengths, sum(chosenLengths))
        const pairs = pairValues(leaf, batch, {
          chosenLogps: sumBySequence(chosenRows, logps),
          rejectedLogps: sumBySequence(rejectedRows, logps),
        })
        const weights = wpoWeights({ logps, logSumSquares, chosenRows, rejectedRows })
        g.output('weights', weights)
        for (const name of ['chosenLogps', 'rejectedLogps'] as const) g.output(name, pairs[name])
        outputMean(g, mul(weights, buildMixture(pairs, [termOf(given)], given.beta)), P, {
          gradChosenLogps: pairs.chosenLogps,
          gradRejectedLogps: pairs.rejectedLogps,
          dLogits: hidden,
        })
      },
    })
    const { values, gradients } = checks(target, 'logits')
    const { chosenWeights, rejectedWeights } = golden.wpo as Numbers
    values(
      out.weights!,
      chosenWeights!.map((w, p) => w * rejectedWeights![p]!),
    )
    values(out.loss!, [given.loss])
    // The tolerance of log-probabilities is per token
    for (const [side, lengths] of Object.entries({ chosenLogps: chosenLengths, rejectedLogps: rejectedLengths }))
      values(
        out[side]!.map((logp, p) => logp / lengths[p]!),
        (given[side] as number[]).map((x, p) => x / lengths[p]!),
      )
    for (const name of ['gradChosenLogps', 'gradRejectedLogps']) gradients(out[name], given[name] as number[])
    gradients(out.dLogits!, [
      ...flat(given.gradChosenLogits as number[]),
      ...flat(given.gradRejectedLogits as number[]),
    ])
  }
  eachCase('wpo', golden.wpo.cases, run, target)
})

describe.each(targets)('single completions, %s', (target) => {
  const { logps, refLogps, klLogps } = golden.kto as Numbers
  const B = logps!.length

  const run = async (given: Case) => {
    const labels = given.labels as boolean[]
    const { build, needsKl } = unpairedLosses[given.type as UnpairedLossName]
    const kl = estimateKl(klLogps!, given.refKlLogps as number[])
    if (needsKl) expectClose([kl], [given.kl as number], 1e-12, 'entry')
    const { desirableWeight, undesirableWeight, beta } = given as unknown as Record<string, number>
    const options = { ...unpairedOptions.parse({ desirableWeight, undesirableWeight }), beta: beta! }
    const inputs: Numbers = {}
    const out = await runGraph({
      target,
      runtime: kernels.runtime,
      inputs,
      dims: { P: B },
      build(g) {
        const leaf = leaves(g, inputs)
        const policy = leaf('logps', logps!)
        const perSample = build(
          {
            logps: policy,
            refLogps: leaf('refLogps', refLogps!),
            labels: leaf('labels', labels.map(Number)),
            kl: needsKl ? leaf('kl', [kl], [1]) : null,
          },
          options,
        )
        g.output('perSample', perSample)
        outputMean(g, perSample, B, { gradLogps: policy })
      },
    })
    const { values, gradients } = checks(target)
    values(out.loss!, [given.loss])
    values(out.perSample!, given.perSample as number[])
    gradients(out.gradLogps, given.gradLogps as number[])
    const rewards = implicitRewards({ logps: logps!, refLogps: refLogps!, lengths: golden.kto.lengths }, beta!)
    const metrics: Record<string, number | undefined> = unpairedMetrics({ rewards, logps: logps!, labels })
    for (const [name, expected] of Object.entries(given.metrics ?? {})) {
      if (expected === null) expect(metrics[name]).toBeUndefined()
      else expectClose([metrics[name]!], [expected], 1e-12, 'entry')
    }
  }
  eachCase('kto', golden.kto.cases, run, target)
})

it('mismatched pairs: completions rotate by one', () => {
  const { completions, mismatched } = golden.kto.mismatchRotation
  expect(rotateCompletions(completions)).toEqual(mismatched)
})
