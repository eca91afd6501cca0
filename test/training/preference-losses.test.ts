// The preference losses on one small batch worked by hand, their recipe form, and what is measured beside them. The
// golden values (test/golden/preference.test.ts) cover options and gradients.
import { describe, expect, it } from 'vitest'
import { Graph, type Value } from '../../src/compiler/graph.js'
import {
  buildMixture,
  type PreferenceLossInput,
  preferenceLosses,
  preferenceLossSchema,
  termsOf,
} from '../../src/training/losses/preference/index.js'
import { ldWeights } from '../../src/training/losses/preference/length-desensitized.js'
import { bradleyTerry } from '../../src/training/losses/reward/bradley-terry.js'
import { unpairedLosses } from '../../src/training/losses/unpaired/index.js'
import { estimateKl, rotateCompletions } from '../../src/training/losses/unpaired/kl-estimate.js'
import { implicitRewards, preferenceMetrics, unpairedMetrics } from '../../src/training/preference-metrics.js'
import { runOracle } from '../ops/oracle.js'

type Vectors = Record<string, number[]>

/** A function of vectors, in float64. */
async function evaluate(vectors: Vectors, build: (values: Record<string, Value>) => Value): Promise<number[]> {
  const g = new Graph({ kernels: false, floatType: 'f64' })
  const leaf = (name: string) => g.leaf(name, 'input', 'f64', [vectors[name]!.length])
  g.output('y', build(Object.fromEntries(Object.keys(vectors).map((name) => [name, leaf(name)]))))
  const feeds = Object.entries(vectors).map(([name, data]) => [
    name,
    { dtype: 'f64' as const, shape: [data.length], data },
  ])
  return [...(await runOracle(g, Object.fromEntries(feeds))).y!]
}

// Log-ratios u = 2, −2 and v = −2, 2: β = ½ gives h = 2, −2; per token 2/4 + 2/5 = 0.9, −0.9.
const beta = 0.5
const batch: Vectors = {
  chosenLogps: [-10, -15],
  refChosenLogps: [-12, -13],
  chosenLengths: [4, 4],
  rejectedLogps: [-15, -10],
  refRejectedLogps: [-13, -12],
  rejectedLengths: [5, 5],
  promptLogps: [-3, -4],
  promptLengths: [2, 4],
  meanChosenLength: [4],
  meanPromptLength: [3],
}
const perPair = (given: PreferenceLossInput, vectors = batch) =>
  evaluate(vectors, (pairs) => buildMixture(pairs as never, termsOf(preferenceLossSchema.parse(given)), beta))

const soft1 = 0.3132616875182228 // −log σ(1)
const soft2 = 0.1269280110429726 // −log σ(2); that of −2 is 2 more
const sigma1 = 0.7310585786300049 // σ(1)
const sigma2 = 0.8807970779778825

const byHand: [PreferenceLossInput, number[]][] = [
  ['sigmoid', [soft2, soft2 + 2]],
  [{ type: 'sigmoid', labelSmoothing: 0.1 }, [soft2 + 0.2, soft2 + 1.8]],
  // s_c − s_r = log σ(2) − log σ(−2) = 2, so h = 1
  [{ type: 'sigmoid', divergence: 'js_divergence' }, [soft1, soft1 + 1]],
  ['hinge', [0, 3]],
  ['ipo', [0.01, 3.61]],
  [{ type: 'robust', labelSmoothing: 0.25 }, [soft2 - 1, soft2 + 3]],
  [{ type: 'exo_pair', labelSmoothing: 0.25 }, [0.053306012343217926, 0.8900027110540379]],
  ['nca_pair', [2 * soft1 + 0.5, 2 * soft1 + 1.5]],
  ['bco_pair', [2 * soft1, 2 * soft1 + 2]],
  ['sppo_hard', [2, 18]],
  ['apo_zero', [2 * (1 - sigma1), 2 * sigma1]],
  ['apo_down', [sigma1 + 1 - sigma2, 1 - sigma1 + sigma2]],
  // Sorted margins −5, 5 of the policy and −1, 1 of the reference: x = −2, 2
  ['aot', [soft2 + 2, soft2]],
  ['aot_unpaired', [Math.LN2, Math.LN2]],
  // m = σ(±40): all of one side
  ['discopop', [Math.exp(-2), soft2 + 2]],
  ['sft', [10 / 4, 15 / 4]],
  ['sigmoid_norm', [0.4932489459974548, 0.9432489459974549]],
  // −½ log σ of the log odds ratios 0.5345813 and −1.8716148: means −2.5 against −3, −3.75 against −2
  [{ type: 'orpo', nllOver: 'completion' }, [2.5 + 0.23058062506119303, 3.75 + 1.0073702956133623]],
  [{ type: 'orpo' }, [13 / 7 + 0.23058062506119303, 19 / 7 + 1.0073702956133623]],
  [{ type: 'cpo', cpoAlpha: 0 }, [0.07888973429254952, 2.5788897342925496]],
  [{ type: 'cpo', variant: 'hinge' }, [0 + 10 / 4, 3.5 + 15 / 4]],
  [{ type: 'cpo', variant: 'ipo', cpoAlpha: 0 }, [0.25, 2.75 ** 2]],
  // z̄ = 0.5 meets the target
  ['simpo', [Math.LN2, 1.4061501362483146]],
  [
    ['sigmoid', { type: 'hinge', weight: 0.5 }],
    [soft2, soft2 + 2 + 1.5],
  ],
]

describe('by hand', () => {
  it.each(byHand.map(([given, expected]) => [JSON.stringify(given), given, expected] as const))(
    '%s',
    async (_, given, expected) => {
      expect(await perPair(given)).toEqual(expected.map((value) => expect.closeTo(value, 12)))
    },
  )

  it('has a case of every loss', () => {
    const named = byHand.flatMap(([given]) =>
      [given].flat().map((term) => (typeof term === 'string' ? term : term.type)),
    )
    expect(new Set(named)).toEqual(new Set(Object.keys(preferenceLosses)))
  })

  it('stays finite where a completion is certain, and where log-ratios are in the thousands', async () => {
    const certain = { ...batch, chosenLogps: [0, -1e-9], rejectedLogps: [-6000, 0] }
    for (const type of ['orpo', 'discopop', 'simpo'] as const)
      expect((await perPair(type, certain)).every(Number.isFinite), type).toBe(true)
  })

  it('single completions: KTO and its anchored sibling', async () => {
    const options = { desirableWeight: 1, undesirableWeight: 2, beta }
    const vectors = { logps: batch.chosenLogps!, refLogps: batch.refChosenLogps!, labels: [1, 0], kl: [1] }
    const kto = await evaluate(vectors, (values) => unpairedLosses.kto.build(values as never, options))
    expect(kto).toEqual([0.3775406687981454, 0.3648510476127127].map((value) => expect.closeTo(value, 12)))
    const apo = await evaluate(vectors, (values) => unpairedLosses.apo_zero_unpaired.build(values as never, options))
    expect(apo).toEqual([1 - sigma1, 2 * (1 - sigma1)].map((value) => expect.closeTo(value, 12)))
  })

  it('reward pairs: the margin lowers the lead, centring pulls the sum to 0', async () => {
    const scores = { chosen: [4, 0], rejected: [2, 2], margin: [0, 0] }
    const loss = await evaluate(scores, (values) => bradleyTerry(values as never, 0.01))
    expect(loss).toEqual([soft2 + 0.36, soft2 + 2 + 0.04].map((value) => expect.closeTo(value, 12)))
    const led = await evaluate({ ...scores, margin: [1, -3] }, (values) => bradleyTerry(values as never, 0))
    expect(led).toEqual([soft1, soft1].map((value) => expect.closeTo(value, 12)))
  })
})

describe('recipe form', () => {
  it('a name, a record or a list becomes terms with weights and options', () => {
    expect(termsOf(preferenceLossSchema.parse('nca_pair'))).toEqual([{ type: 'nca_pair', weight: 1, options: {} }])
    expect(termsOf(preferenceLossSchema.parse(['sft', { type: 'exo_pair', weight: 0.5 }]))).toEqual([
      { type: 'sft', weight: 1, options: {} },
      { type: 'exo_pair', weight: 0.5, options: { labelSmoothing: 1e-3, divergence: 'reverse_kl', alpha: 0.5 } },
    ])
  })

  it.each([
    ['an unknown loss', 'dpo', 'sigmoid'],
    ['an unknown key', { type: 'sigmoid', labelSmothing: 0.1 }, 'labelSmothing'],
    ["another loss's key", { type: 'ipo', labelSmoothing: 0.1 }, 'labelSmoothing'],
    ['a smoothing that says the opposite', { type: 'robust', labelSmoothing: 0.5 }, 'labelSmoothing'],
    ['a smoothing of 0 whose logarithm is taken', { type: 'exo_pair', labelSmoothing: 0 }, 'labelSmoothing'],
    [
      'a smoothing that a variant does not read',
      { type: 'cpo', variant: 'ipo', labelSmoothing: 0.1 },
      'labelSmoothing',
    ],
    ['a divergence where none is defined', { type: 'apo_zero', divergence: 'forward_kl' }, 'divergence'],
    ['a negative weight', [{ type: 'sigmoid', weight: -1 }], 'weight'],
    ['no loss', [], 'array'],
  ])('refuses %s', (_, given, word) => {
    const { error } = preferenceLossSchema.safeParse(given)
    expect(JSON.stringify(error?.issues)).toContain(word)
  })
})

describe('beside the losses', () => {
  it('metrics of pairs: a tie is no win', () => {
    const side = { logps: [-10, -15], refLogps: [-12, -13], lengths: [4, 4] }
    const chosenRewards = implicitRewards(side, beta)
    expect(chosenRewards).toEqual([1, -1])
    const metrics = preferenceMetrics({
      chosenRewards,
      rejectedRewards: [1, -2],
      chosenLogps: side.logps,
      rejectedLogps: [-11, -14],
    })
    expect(metrics).toEqual({
      'rewards/chosen': 0,
      'rewards/rejected': -0.5,
      'rewards/accuracies': 0.5,
      'rewards/margins': 0.5,
      'logps/chosen': -12.5,
      'logps/rejected': -12.5,
    })
    expect(implicitRewards({ ...side, refLogps: null }, beta, (logp, length) => logp / length)).toEqual([-1.25, -1.875])
  })

  it('metrics of single completions: an absent class has none', () => {
    const completions = { rewards: [1, 3], logps: [-10, -15] }
    expect(unpairedMetrics({ ...completions, labels: [true, false] })).toMatchObject({ 'rewards/margins': -2 })
    expect(unpairedMetrics({ ...completions, labels: [1, 1] })).toEqual({
      'rewards/chosen': 2,
      'rewards/rejected': undefined,
      'rewards/margins': undefined,
      'logps/chosen': -12.5,
      'logps/rejected': undefined,
    })
  })

  it('token weights of LD-DPO, and the KL estimate of KTO', () => {
    expect([...ldWeights(4, 2, 0.5)]).toEqual([1, 1, 0.5, 0.5])
    expect([...ldWeights(2, 4, 0.5)]).toEqual([1, 1])
    expect(estimateKl([-3, -5], [-4, -7])).toBe(1.5)
    expect(estimateKl([-4], [-3])).toBe(0)
    expect(rotateCompletions(['a', 'b', 'c'])).toEqual(['c', 'a', 'b'])
    expect(() => rotateCompletions(['a'])).toThrow('at least two')
  })
})
