// A tiny model of the reference values as a base directory, and rows for it: whole runs in seconds.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { importBase } from '../../src/models/import.js'
import type { TrainableRecipe } from '../../src/training/index.js'
import { goldenDir } from '../golden/folder.js'
import { seeded } from './toy-program.js'

/** Imports `models/tiny/<name>` into `folder` → the base directory. */
export async function importTiny(folder: string, name = 'llama', format: 'none' | 'int4' = 'none'): Promise<string> {
  const out = join(folder, `base-${name}-${format}`)
  await importBase({ source: goldenDir('models', 'tiny', name), out, format, name: `tiny ${name}` })
  return out
}

export const words = ['red', 'green', 'blue', 'one', 'two', 'three', 'cat', 'dog', 'fish', 'sun', 'moon']

/** Writes `count` rows of {prompt, completion}: the completion repeats the last word. */
export function writeRows(path: string, count: number, seed: number): string {
  const random = seeded(seed)
  const word = () => words[Math.floor(random() * words.length)]!
  const rows = Array.from({ length: count }, () => {
    const last = word()
    const prompt = `${Array.from({ length: 1 + Math.floor(random() * 4) }, word).join(' ')} ${last}: `
    return JSON.stringify({ prompt, completion: last })
  })
  writeFileSync(path, `${rows.join('\n')}\n`)
  return path
}

export interface TinyRecipeOptions {
  folder: string
  base: string
  stage?: Record<string, unknown>
  adapter?: TrainableRecipe['adapter']
  data?: Partial<TrainableRecipe['data']>
  runtime?: TrainableRecipe['runtime']
}

export function tinyRecipe({ folder, base, stage, adapter, data, runtime }: TinyRecipeOptions): TrainableRecipe {
  return {
    name: 'tiny',
    base,
    adapter: { rank: 4, alpha: 8, ...adapter },
    data: {
      train: writeRows(join(folder, 'train.jsonl'), 60, 1),
      heldOut: writeRows(join(folder, 'held-out.jsonl'), 12, 2),
      appendEos: false,
      allowUntrainedStop: true,
      ...data,
    },
    stage: {
      type: 'sft',
      maxSteps: 8,
      learningRate: 5e-3,
      maxLength: 64,
      packing: false,
      microBatchSize: 4,
      gradientAccumulationSteps: 2,
      precision: 'strict',
      ...stage,
    },
    ...(runtime ? { runtime } : {}),
  }
}
