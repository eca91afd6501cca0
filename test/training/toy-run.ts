// A recipe and its preparation over the toy program, for tests of `run()`.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { PreparedRun, ResolvedRecipe } from '../../src/training/context.js'
import type { Prepare } from '../../src/training/run.js'
import { createToyLoader, toyDocuments } from './toy-loader.js'
import { createToyProgram } from './toy-program.js'

const vocabSize = 13

export function toyRecipe(stage: Record<string, unknown> = {}): ResolvedRecipe {
  return {
    name: 'toy',
    base: 'toy',
    adapter: {},
    data: {},
    stage: {
      type: 'sft',
      maxSteps: 12,
      learningRate: 0.05,
      schedule: 'cosine',
      warmupSteps: 2,
      microBatchSize: 2,
      gradientAccumulationSteps: 2,
      seed: 3,
      evaluation: { everySteps: 4 },
      checkpoint: { everySteps: 3 },
      ...stage,
    },
  }
}

export function toyPrepare(options: { delayMs?: number; poisonRow?: number } = {}): Prepare {
  const offline: Prepare['offline'] = async (_, wanted): Promise<PreparedRun> => {
    const delay = () => new Promise<void>((resolve) => setTimeout(resolve, options.delayMs))
    const program = createToyProgram({ vocabSize, poisonToken: 5, ...(options.delayMs ? { delay } : {}) })
    const documents = toyDocuments(24, vocabSize, 7).map(({ ids, labels, row }) => ({
      ids: ids.map((id, i) => (i === 0 && row === options.poisonRow ? 5 : id === 5 ? 4 : id)),
      labels,
      row,
    }))
    return {
      program,
      loader: createToyLoader(documents, wanted),
      totalSteps: wanted.maxSteps ?? 12,
      maxTokens: 64,
      heldOut: {
        documents: toyDocuments(9, vocabSize, 8).map((d) => ({ ...d, ids: d.ids.map((id) => (id === 5 ? 4 : id)) })),
        choices: [],
        groups: [],
      },
      trainingRows: () => [],
      base: 'toy',
      device: 'test',
      isa: 'none',
      versions: { espalier: 'test' },
      hashes: {},
      exportAdapter: (folder) => writeFileSync(join(folder, 'adapter.f32'), new Uint8Array(program.params.buffer)),
      close: () => program.close(),
    }
  }
  const online = async () => {
    throw new Error('the toy samples nothing')
  }
  return { offline, online }
}
