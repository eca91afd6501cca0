// The preference losses that a recipe can name, what each takes, and weighted mixtures of them. The recipe form derives
// from the map.
import { z } from 'zod'
import type { Value } from '../../../compiler/graph.js'
import { add, scale } from '../../../compiler/ops/elementwise.js'
import { aot } from './aot.js'
import { aotUnpaired } from './aot-unpaired.js'
import { apoDown } from './apo-down.js'
import { apoZero } from './apo-zero.js'
import { bcoPair } from './bco-pair.js'
import { cpo } from './cpo.js'
import { discopop } from './discopop.js'
import { exoPair } from './exo-pair.js'
import { hinge } from './hinge.js'
import { ipo } from './ipo.js'
import { ncaPair } from './nca-pair.js'
import { orpo } from './orpo.js'
import type { PairValues, PolicyScore, PreferenceLoss } from './preference-loss.js'
import { robust } from './robust.js'
import { sft } from './sft.js'
import { sigmoid } from './sigmoid.js'
import { sigmoidNorm } from './sigmoid-norm.js'
import { simpo } from './simpo.js'
import { sppoHard } from './sppo-hard.js'

export const preferenceLosses = {
  sigmoid,
  ipo,
  hinge,
  robust,
  exo_pair: exoPair,
  nca_pair: ncaPair,
  bco_pair: bcoPair,
  sppo_hard: sppoHard,
  apo_zero: apoZero,
  apo_down: apoDown,
  aot,
  aot_unpaired: aotUnpaired,
  discopop,
  sft,
  sigmoid_norm: sigmoidNorm,
  orpo,
  cpo,
  simpo,
} satisfies Record<string, PreferenceLoss>

type Losses = typeof preferenceLosses
export type PreferenceLossName = keyof Losses
export const preferenceLossNames = Object.keys(preferenceLosses) as [PreferenceLossName, ...PreferenceLossName[]]

/** One loss of a mixture; `options` are those of its own. */
export type PreferenceTerm = {
  [Name in PreferenceLossName]: {
    readonly type: Name
    readonly weight: number
    readonly options: z.output<Losses[Name]['options']>
  }
}[PreferenceLossName]

type TermInput =
  | PreferenceLossName
  | {
      [Name in PreferenceLossName]: { type: Name; weight?: number } & z.input<Losses[Name]['options']>
    }[PreferenceLossName]
export type PreferenceLossInput = TermInput | TermInput[]

const lossOf = (type: PreferenceLossName): PreferenceLoss => preferenceLosses[type] as PreferenceLoss

const [first, ...others] = preferenceLossNames.map((type) =>
  lossOf(type).options.safeExtend({ type: z.literal(type), weight: z.number().nonnegative().default(1) }),
)
const named = z.enum(preferenceLossNames)
const detailed = z.discriminatedUnion('type', [first!, ...others])

/** A loss of a mixture as a recipe holds it after validation: its options beside type and weight. */
export type PreferenceLossSetting = {
  [Name in PreferenceLossName]: { readonly type: Name; readonly weight: number } & z.output<Losses[Name]['options']>
}[PreferenceLossName]

/** `'sigmoid'`, `{ type: 'ipo', weight: 0.5, … its options }`, or an array of such; weights are not normalised. */
export const preferenceLossSchema = z
  .union([named, detailed, z.array(z.union([named, detailed])).min(1)])
  .transform((given) =>
    [given].flat().map((term) => (typeof term === 'string' ? detailed.parse({ type: term }) : term)),
  ) as unknown as z.ZodType<PreferenceLossSetting[], PreferenceLossInput>

/** Settings as the losses take them. */
export function termsOf(settings: readonly PreferenceLossSetting[]): PreferenceTerm[] {
  return settings.map(({ type, weight, ...options }) => ({ type, weight, options }) as PreferenceTerm)
}

/** Σ weight · loss of each pair [P]. */
export function buildMixture(pairs: PairValues, terms: readonly PreferenceTerm[], beta: number): Value {
  return terms
    .map(({ type, weight, options }) => scale(lossOf(type).build(pairs, { ...options, beta }), weight))
    .reduce(add)
}

/** What the implicit rewards of a mixture without a reference are made of: as its first term says. */
export function policyScoreOf(terms: readonly PreferenceTerm[]): PolicyScore {
  const { type, options } = terms[0]!
  return lossOf(type).policyScore?.(options) ?? ((logp) => logp)
}
