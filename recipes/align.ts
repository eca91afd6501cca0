// From supervised tuning to preferences in one file: SmolLM2 learns to continue addresses to Congress, a reward model
// learns which continuation is the more positive, and DPO, PPO and GRPO learn to write it. The preference is a rule over
// real text (see datasets/valence.ts), not a person's. Run it with: npx espalier run recipes/align.ts
import { definePipeline } from 'espalier'
import { createValence } from '../datasets/valence.js'

const valence = createValence({ heldOutRows: 256, trainRows: 2048 })

export default definePipeline({
  name: 'align',
  base: 'smollm2-135m-instruct',
  adapter: { rank: 16, alpha: 32 },
  stages: {
    sft: {
      data: { dataset: valence.supervised },
      stage: { type: 'sft', learningRate: 5e-4, schedule: 'cosine', warmupSteps: 0.1, maxLength: 128, microBatchSize: 8, epochs: 1 },
    },
    reward: {
      data: { dataset: valence.preferences },
      stage: {
        type: 'reward',
        startAdapter: 'stage:sft',
        learningRate: 5e-4,
        schedule: 'cosine',
        warmupSteps: 0.1,
        maxLength: 128,
        microBatchSize: 8,
        centerRewardsCoefficient: 0.01,
      },
    },
    dpo: {
      data: { dataset: valence.preferences },
      stage: {
        type: 'dpo',
        startAdapter: 'stage:sft',
        reference: 'start',
        learningRate: 2e-4,
        schedule: 'cosine',
        warmupSteps: 0.1,
        maxLength: 128,
        microBatchSize: 8,
      },
    },
  },
})
