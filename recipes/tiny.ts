// Praise or complaint? A random model of 0.1 M parameters learns to tell them apart: a whole run in seconds, without a
// network. Run it with: npx espalier run recipes/tiny.ts
import { defineRecipe } from 'espalier'
import tinyCorpus from '../datasets/tiny-corpus.js'

export default defineRecipe({
  name: 'tiny',
  base: { source: '../test/golden/values/models/tiny/llama', format: 'int4' },
  adapter: { rank: 16, alpha: 64 },
  data: { dataset: tinyCorpus },
  stage: {
    type: 'sft',
    maxSteps: 150,
    learningRate: 8e-3,
    schedule: 'cosine',
    warmupSteps: 0.05,
    maxLength: 128,
    packing: false,
    microBatchSize: 32,
    evaluation: { everySteps: 50 },
  },
})
