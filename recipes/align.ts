// The whole line in one file, over one 4-bit base: SmolLM2 learns to continue addresses to Congress (sft), a reward model
// learns which of two continuations is the more positive (reward), and PPO, GRPO and DPO learn to write such, each from the
// supervised adapter: PPO by the reward model, GRPO by the rule itself, DPO by the pairs. The preference is a rule over real
// text, the valence of a published word list (datasets/valence.ts), never a person's.
// Run it with: npx espalier run recipes/align.ts
// Half an hour and more on two quiet cores, 0.9 GB. Run again, it skips the stages that are finished.
import { definePipeline } from 'espalier'
import { createValence, goldReward } from '../datasets/valence.js'

const valence = createValence({ heldOutRows: 256 })
const tuned = { startAdapter: 'stage:sft', reference: 'start' } as const

export default definePipeline({
  name: 'align',
  base: 'smollm2-135m-instruct',
  adapter: { rank: 16, alpha: 32 },
  stages: {
    sft: {
      data: { dataset: valence.supervised },
      stage: {
        type: 'sft',
        maxSteps: 192,
        learningRate: 5e-4,
        schedule: 'cosine',
        warmupSteps: 0.1,
        maxLength: 128,
        microBatchSize: 8,
      },
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
    ppo: {
      data: { dataset: valence.prompts },
      stage: {
        type: 'ppo',
        ...tuned,
        rewards: [{ model: 'stage:reward' }],
        value: { rank: 4 },
        lambda: 1,
        clipRangeValue: 5, // the reward deviates by 1.5: steps of 0.2 would not get the values there
        numMiniBatches: 4,
        maxSteps: 8,
        promptsPerStep: 128,
        maxCompletionLength: 48,
        temperature: 1,
        numPpoEpochs: 2,
        klCoefficient: 0.1,
        missingEosPenalty: 0.5,
        learningRate: 1.42e-4,
        schedule: 'cosine',
        microBatchSize: 8,
      },
    },
    grpo: {
      data: { dataset: valence.prompts },
      stage: {
        type: 'grpo',
        ...tuned,
        rewards: [{ name: 'valence', function: ({ completion }) => goldReward(completion) }],
        loss: 'dr_grpo',
        beta: 0.1,
        maxSteps: 12,
        promptsPerStep: 16,
        numGenerations: 8,
        maxCompletionLength: 48,
        numMiniBatches: 2,
        learningRate: 2.8e-4,
        schedule: 'cosine',
        microBatchSize: 8,
      },
    },
    dpo: {
      data: { dataset: valence.preferences },
      stage: {
        type: 'dpo',
        ...tuned,
        maxSteps: 128,
        learningRate: 2e-4,
        schedule: 'cosine',
        warmupSteps: 0.1,
        maxLength: 128,
        microBatchSize: 8,
      },
    },
  },
})
