// The bases that benchmarks run on, and the programs over them.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { InferenceSession, packSequences } from '../../src/inference/session.js'
import { openBase } from '../../src/models/base-directory.js'
import { cacheFolder, prepareBase } from '../../src/models/fetch.js'
import { loadBase } from '../../src/models/loaded-base.js'
import { openRuntime, type Runtime } from '../../src/runtime/index.js'
import { packageRoot } from '../../src/runtime/native.js'
import { openAdapter } from '../../src/training/adapter.js'
import type { TrainProgram } from '../../src/training/program.js'
import { openTrainProgram, type TrainProgramOptions } from '../../src/training/step.js'
import { randomBase } from './random-base.js'

/** The real base → its base directory; downloaded and imported on first use. */
export async function benchBase(): Promise<string> {
  return (await prepareBase('smollm2-135m-instruct')).dir
}

let textIds: readonly number[] | undefined
/** Token ids of real text, from the reference values beside the sources, wherever this file was compiled to. */
export function benchTextIds(): readonly number[] {
  const path = join(packageRoot(), 'test', 'golden', 'values', 'models', 'base', 'perplexity.json')
  textIds ??= (JSON.parse(readFileSync(path, 'utf8')) as { ids: number[] }).ids
  return textIds
}

/** meta-llama/Llama-3.2-1B's config.json, where it decides sizes or rotation. */
const llama32Config = {
  model_type: 'llama',
  architectures: ['LlamaForCausalLM'],
  hidden_size: 2048,
  intermediate_size: 8192,
  num_hidden_layers: 16,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  head_dim: 64,
  vocab_size: 128256,
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  rope_scaling: {
    rope_type: 'llama3',
    factor: 32,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 8192,
  },
  tie_word_embeddings: true,
  max_position_embeddings: 131072,
  hidden_act: 'silu',
}

/** Shapes by name → the folder of a base; `isReal` weights come with real text. */
export const shapes = {
  'smollm2-135m': { isReal: true, folder: benchBase },
  'llama-3.2-1b': {
    isReal: false,
    folder: async () => randomBase(join(cacheFolder(), 'bench', 'llama-3.2-1b-int4'), llama32Config),
  },
} as const
export type ShapeName = keyof typeof shapes

export interface BenchProgram {
  program: TrainProgram
  runtime: Runtime
  vocabSize: number
  name: string
}

/** The training step of the table of required figures: rank 16 on all linear layers. */
export async function openBenchProgram(options: {
  folder: string
  maxTokens: number
  strict: boolean
}): Promise<BenchProgram> {
  const { folder, maxTokens, strict } = options
  const precision = strict ? 'strict' : 'fast'
  const { programs, ...rest } = await openBenchPrograms({
    folder,
    programs: [{ maxTokens, maxDocuments: 1, precision }],
  })
  return { ...rest, program: programs[0]! }
}

/** Several programs over one base, each with that adapter. */
export async function openBenchPrograms(options: {
  folder: string
  programs: Omit<TrainProgramOptions, 'base' | 'layout' | 'adapter'>[]
}): Promise<Omit<BenchProgram, 'program'> & { programs: TrainProgram[] }> {
  const runtime = await openRuntime()
  const opened = openBase(options.folder)
  const base = await loadBase(runtime, opened)
  const programs: TrainProgram[] = []
  for (const own of options.programs) {
    const adapter = openAdapter(opened, { lora: { rank: 16, alpha: 32 }, seed: 0, baseName: opened.source.name })
    const { layout } = adapter
    const program = await openTrainProgram({ base, layout, adapter: layout.adapter, seed: 0, ...own })
    adapter.fill(program.params)
    programs.push(program)
  }
  return { programs, runtime, vocabSize: base.config.vocabSize, name: opened.source.name }
}

/** A session of the base that can score. */
export async function openBenchScorer(folder: string) {
  const runtime = await openRuntime()
  const base = await loadBase(runtime, openBase(folder))
  const session = await InferenceSession.open({ base })
  return {
    /** Mean NLL of the tokens after the first. */
    async score(ids: Int32Array): Promise<number> {
      const rows = Int32Array.from({ length: ids.length - 1 }, (_, i) => i)
      const logps = await session.logps(packSequences([ids]), rows, ids.slice(1))
      return -logps.reduce((a, b) => a + b, 0) / logps.length
    },
    close: () => session.close(),
  }
}
