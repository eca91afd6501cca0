// A first fine-tune. Run it with: espalier run recipe.ts      (before that: espalier plan recipe.ts)
import { defineRecipe } from 'espalier'

export default defineRecipe({
  // Names the run directory: runs/<name>-<time>
  name: 'first-run',

  // What is trained on: a known name, hf:org/name, a .gguf file, a Hugging Face folder, or a base directory
  base: 'smollm2-135m-instruct',

  // The low-rank adapter that learns; the base stays as it is
  adapter: {
    rank: 16,
    alpha: 32,
    // names such as ['q_proj', 'v_proj'], a regular expression over whole paths, or every linear layer
    targetModules: 'all-linear',
  },

  // Rows of {messages}, {prompt, completion}, {text} or {inputIds, labels}: .jsonl, .parquet, .arrow
  data: {
    train: 'train.jsonl',
    // Never trained on; the loss on them tells whether it learns or learns by heart
    heldOut: 'held-out.jsonl',
  },

  stage: {
    type: 'sft',
    epochs: 8,
    learningRate: 4e-4,
    schedule: 'cosine',
    warmupSteps: 0.1, // below 1: a share of all steps
    maxLength: 256, // tokens; longer rows are cut and counted
    packing: false,
    microBatchSize: 4, // what is in memory at once
    gradientAccumulationSteps: 1, // more of these is a larger batch in the same memory
    evaluation: { everySteps: 8 },
    checkpoint: { everySteps: 8 },
    samples: { prompts: ['Which tool plants a seedling?'], everySteps: 8, maxNewTokens: 32 },
  },
})
