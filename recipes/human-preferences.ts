// What people prefer, for machines that reach the Hugging Face hub: a reward model and DPO from Anthropic's hh-rlhf (MIT).
// Other sets of human preferences in files of {prompt, chosen, rejected} or {prompt, completions, scores} go in the same place:
// nvidia/HelpSteer2 (CC BY 4.0), stanfordnlp/SHP, openai/summarize_from_feedback.
// Run it with: npx espalier run recipes/human-preferences.ts
import { definePipeline } from 'espalier'
import { createHhRlhf } from '../datasets/hh-rlhf.js'

const data = {
  dataset: createHhRlhf({ part: 'helpful-base', trainRows: 4000, heldOutRows: 512 }),
  truncation: 'drop',
} as const

export default definePipeline({
  name: 'human-preferences',
  base: 'smollm2-135m-instruct',
  adapter: { rank: 16, alpha: 32 },
  stages: {
    reward: {
      data,
      stage: {
        type: 'reward',
        learningRate: 2e-4,
        schedule: 'cosine',
        warmupSteps: 0.1,
        maxLength: 512,
        microBatchSize: 4,
        gradientAccumulationSteps: 4,
        centerRewardsCoefficient: 0.01,
      },
    },
    dpo: {
      data,
      stage: {
        type: 'dpo',
        reference: 'base',
        cacheReference: true,
        learningRate: 5e-5,
        schedule: 'cosine',
        warmupSteps: 0.1,
        maxLength: 512,
        microBatchSize: 4,
        gradientAccumulationSteps: 4,
      },
    },
  },
})
