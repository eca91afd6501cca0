// A tiny random model with a tokenizer of bytes and a ChatML template, and a random adapter for it.
import { createChatTemplate, createTokenizer } from '../../src/data/index.js'
import { Engine } from '../../src/inference/engine.js'
import { LanguageModel } from '../../src/inference/index.js'
import { openBase } from '../../src/models/base-directory.js'
import { loadBase } from '../../src/models/loaded-base.js'
import { openRuntime } from '../../src/runtime/index.js'
import { openAdapter } from '../../src/training/adapter.js'
import { chatMl } from '../data/toy.js'
import { importTiny } from '../training/tiny-base.js'
import { seeded } from '../training/toy-program.js'
import { PlainEngine } from './plain-engine.js'

/** The model in strict arithmetic over the plain engine or the one with a cache, its base below `folder`. */
export async function openTinyModel(folder: string, kind: 'plain' | 'cached' = 'plain'): Promise<LanguageModel> {
  const opened = openBase(await importTiny(folder))
  const tokenizer = createTokenizer(opened.tokenizerJson, opened.tokenizerConfig)
  const runtime = await openRuntime()
  const base = await loadBase(runtime, opened)
  const engine = await (kind === 'plain' ? PlainEngine : Engine).open({ base, precision: 'strict' })
  const template = createChatTemplate(chatMl, tokenizer)
  const release = async () => {
    base.close()
    await runtime.close()
  }
  return new LanguageModel({
    name: 'tiny',
    dir: opened.dir,
    base,
    tokenizer,
    template,
    engine,
    precision: 'strict',
    release,
  })
}

/** Writes an adapter of random values, large enough to change what the model says. */
export function writeTinyAdapter(baseDir: string, folder: string, seed = 1): string {
  const adapter = openAdapter(openBase(baseDir), { lora: { rank: 4, alpha: 8 }, seed, baseName: 'tiny' })
  const random = seeded(seed)
  adapter.save(
    folder,
    Float32Array.from({ length: adapter.layout.length }, () => random() - 0.5),
  )
  return folder
}
