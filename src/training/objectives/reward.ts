// The objective of the reward stage: Bradley–Terry over the scalars at the last real token of both sequences of each pair.
import { mul } from '../../compiler/ops/elementwise.js'
import { reduceSum } from '../../compiler/ops/reduce.js'
import { sumBySequence } from '../losses/preference/sequence-sums.js'
import { bradleyTerry } from '../losses/reward/bradley-terry.js'
import { type Objective, programInputs } from '../objective.js'
import type { MicroBatch } from '../program.js'
import { pairInputs } from './pairs.js'

export interface RewardOptions {
  /** Weight of (c + r)², which keeps scores around 0; 0: none. */
  readonly centerRewardsCoefficient: number
  /** The chosen score is to lead by the pair's margin. */
  readonly useMargin: boolean
}

const inputs = { margins: 'margins' } as const

/** Outputs `scores` [2 P], in the order of the documents. */
export function rewardObjective({ centerRewardsCoefficient, useMargin }: RewardOptions): Objective {
  return {
    head: 'score',
    build({ scores, input }) {
      const side = (name: string) => sumBySequence(input(name, ['P', 'M']), scores)
      const margin = useMargin ? input(inputs.margins, ['P']) : null
      const chosen = side(pairInputs.chosenRows)
      const rejected = side(pairInputs.rejectedRows)
      const losses = bradleyTerry({ chosen, rejected, margin }, centerRewardsCoefficient)
      return reduceSum(mul(losses, input(programInputs.lossScale, [1])), [0])
    },
  }
}

/** A micro-batch of pairs, chosen first, read at the last token of each sequence. */
export function lastTokenRows(batch: MicroBatch): MicroBatch {
  const rows = batch.cuSeqlens.slice(1).map((end) => end - 1)
  return { ...batch, targets: { rows, labels: new Int32Array(rows.length) } }
}

/** The same with what the objective reads. */
export function fillRewardPairs(batch: MicroBatch, margins: ArrayLike<number> | undefined): MicroBatch {
  const documents = batch.cuSeqlens.length - 1
  const pairs = documents / 2
  const sides = [new Float32Array(pairs * documents), new Float32Array(pairs * documents)] as const
  for (let d = 0; d < documents; d++) sides[d & 1]![(d >> 1) * documents + d] = 1
  return {
    ...lastTokenRows(batch),
    dims: { P: pairs },
    inputs: {
      [pairInputs.chosenRows]: sides[0],
      [pairInputs.rejectedRows]: sides[1],
      ...(margins ? { [inputs.margins]: Float32Array.from(margins) } : {}),
    },
  }
}
