// What choosing is worth: over a set whose answers are known, the labels that active choice and random order need to reach a share
// of the accuracy of all labels on held-out pairs. Both begin with the same random round and are judged by the same mean head.
import { permutation } from '../../data/index.js'
import { mean } from '../statistics.js'
import { chooseRound } from './acquisition.js'
import { RewardEnsemble } from './reward-ensemble.js'

/** Pairs with known answers: what heads see of each [C], and 1 where the first is better, else 0. */
export interface LabelledPairs {
  readonly differences: readonly Float32Array[]
  readonly targets: readonly number[]
}

export interface SimulationOptions {
  /** Runs with other draws of the first round, the random order and the heads. Default 5. */
  readonly seeds?: number | undefined
  /** Heads whose disagreement is measured. Default: the ensemble's. */
  readonly numHeads?: number | undefined
  /** Labels of a round, as a share of the pool. Default 0.02. */
  readonly roundShare?: number | undefined
  /** Of the accuracy that all labels give. Default 0.98. */
  readonly targetShare?: number | undefined
  readonly signal?: AbortSignal | undefined
  /** Rounds done and about how many there are. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
}

export interface CurvePoint {
  readonly labels: number
  /** Held-out accuracy, mean of the seeds. */
  readonly active: number
  readonly random: number
}

export interface SimulationResult {
  readonly pairs: number
  readonly heldOutPairs: number
  readonly seeds: number
  readonly labelsPerRound: number
  /** Held-out accuracy with the labels of all pairs, and the share of it that is to be reached. */
  readonly accuracyOfAll: number
  readonly targetAccuracy: number
  /** Labels needed over all pairs, mean of the seeds: the first round that reaches the target ends the count. */
  readonly labelShare: number
  readonly randomLabelShare: number
  readonly bySeed: readonly { readonly labelShare: number; readonly randomLabelShare: number }[]
  readonly curve: readonly CurvePoint[]
}

/** The curve goes on to here even where the target is reached before. */
const CURVE_SHARE = 0.5

type Order = 'active' | 'random'

/** Share of the pairs whose better side the mean head finds; an even margin counts one half. */
function accuracyOf(ensemble: RewardEnsemble, { differences, targets }: LabelledPairs): number {
  const credit = differences.map((difference, i) => {
    const margin = ensemble.margin(difference)
    return margin === 0 ? 0.5 : Number(margin > 0 === (targets[i] === 1))
  })
  return mean(credit)
}

/** @throws where there is too little to simulate with */
export async function simulateAnnotation(
  pool: LabelledPairs,
  heldOut: LabelledPairs,
  options: SimulationOptions = {},
): Promise<SimulationResult> {
  const { seeds = 5, numHeads, roundShare = 0.02, targetShare = 0.98, signal, onProgress } = options
  const count = pool.targets.length
  const labelsPerRound = Math.max(1, Math.round(roundShare * count))
  if (count < 20 || heldOut.targets.length < 20) {
    throw new Error(
      `a simulation needs 20 pairs with known answers to choose from and 20 held-out ones; there are ${count} and ${heldOut.targets.length}`,
    )
  }
  const numFeatures = pool.differences[0]!.length
  const of = (indices: readonly number[]) =>
    [indices.map((i) => pool.differences[i]!), indices.map((i) => pool.targets[i]!)] as const

  const whole = new RewardEnsemble(numFeatures, { numHeads: 0 })
  await whole.fit(pool.differences, pool.targets, signal)
  const accuracyOfAll = accuracyOf(whole, heldOut)
  const targetAccuracy = targetShare * accuracyOfAll

  const numRounds = Math.ceil(count / labelsPerRound)
  const curveRounds = Math.ceil(CURVE_SHARE * numRounds)
  let done = 0
  const step = (rounds: number) => {
    done += rounds
    onProgress?.(done, seeds * 2 * curveRounds)
  }

  /** Accuracy after each round. */
  async function learn(order: Order, seed: number): Promise<number[]> {
    const ensemble = new RewardEnsemble(numFeatures, { numHeads: order === 'active' ? numHeads : 0, seed })
    const shuffled = Array.from(permutation(count, seed, 'annotate/order'))
    const labelled: number[] = []
    const curve: number[] = []
    let left = shuffled
    while (left.length > 0) {
      const isBlind = order === 'random' || labelled.length === 0
      const round = isBlind
        ? left.slice(0, labelsPerRound)
        : chooseRound(ensemble, of(left)[0], labelsPerRound).map((k) => left[k]!)
      const taken = new Set(round)
      labelled.push(...round)
      left = left.filter((i) => !taken.has(i))
      await ensemble.fit(...of(labelled), signal)
      curve.push(accuracyOf(ensemble, heldOut))
      step(curve.length <= curveRounds ? 1 : 0)
      if (curve.length >= curveRounds && curve.some((accuracy) => accuracy >= targetAccuracy)) break
    }
    return curve
  }
  const labelsAt = (round: number) => Math.min(count, (round + 1) * labelsPerRound)
  const shareNeeded = (curve: readonly number[]) => {
    const round = curve.findIndex((accuracy) => accuracy >= targetAccuracy)
    return round < 0 ? 1 : labelsAt(round) / count
  }

  const curves: Record<Order, number[]>[] = []
  for (let seed = 0; seed < seeds; seed++) {
    curves.push({ random: await learn('random', seed), active: await learn('active', seed) })
  }
  const bySeed = curves.map(({ active, random }) => ({
    labelShare: shareNeeded(active),
    randomLabelShare: shareNeeded(random),
  }))
  const common = Math.min(...curves.flatMap(({ active, random }) => [active.length, random.length]))
  return {
    pairs: count,
    heldOutPairs: heldOut.targets.length,
    seeds,
    labelsPerRound,
    accuracyOfAll,
    targetAccuracy,
    labelShare: mean(bySeed.map(({ labelShare }) => labelShare)),
    randomLabelShare: mean(bySeed.map(({ randomLabelShare }) => randomLabelShare)),
    bySeed,
    curve: Array.from({ length: common }, (_, round) => ({
      labels: labelsAt(round),
      active: mean(curves.map(({ active }) => active[round]!)),
      random: mean(curves.map(({ random }) => random[round]!)),
    })),
  }
}
