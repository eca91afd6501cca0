// A reward model alone, from all preference pairs of datasets/valence.ts: which of two continuations is the more positive, by the
// rule of a published word list. Also what `espalier annotate --simulate` asks about when it is given no recipe.
// Run it with: npx espalier run recipes/reward.ts
import { defineRecipe } from 'espalier'
import { createValence } from '../datasets/valence.js'

export default defineRecipe({
  name: 'reward',
  base: 'smollm2-135m-instruct',
  adapter: { rank: 16, alpha: 32 },
  data: { dataset: createValence({ heldOutRows: 868 }).preferences },
  stage: {
    type: 'reward',
    learningRate: 5e-4,
    schedule: 'cosine',
    warmupSteps: 0.1,
    maxLength: 128,
    microBatchSize: 8,
    centerRewardsCoefficient: 0.01,
  },
})
