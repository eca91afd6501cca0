// The objective of supervised tuning: a loss of token log-probabilities, meant over the targets of the whole step.
import { type LossName, losses } from '../losses/index.js'
import { type Objective, programInputs } from '../objective.js'

export const tokenMean = (loss: LossName): Objective => ({
  head: 'logProbs',
  build: ({ logps, input }) => losses[loss].build(logps, input(programInputs.lossWeights, ['M'])),
})
