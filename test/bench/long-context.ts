// `bench -- longContext`: what an 8-bit cache saves and costs on real text, and what samples of one prompt share.
import { fileURLToPath } from 'node:url'
import type { CacheType } from '../../src/compiler/ops/paged-attention.js'
import type { Batch } from '../../src/inference/batch.js'
import { blocksFor, blockTokens } from '../../src/inference/blocks.js'
import { Engine } from '../../src/inference/engine.js'
import { blockBytes, Executor } from '../../src/inference/executor.js'
import { resolveSampling } from '../../src/inference/sampling.js'
import { openBase } from '../../src/models/base-directory.js'
import type { Precision } from '../../src/models/graphs.js'
import { type LoadedBase, loadBase } from '../../src/models/loaded-base.js'
import { openRuntime } from '../../src/runtime/index.js'
import { benchBase, benchTextIds } from './base.js'
import { childInput, reportToParent, runChild } from './process-tree.js'

const scoredTokens = 4096
const rowsPerRun = 64
const promptTokens = 1024
const samples = 16
const newTokens = 256
/** Lifts one token above all others, so that it is drawn and its log-probability comes out. */
const certain = 1e6

/** Perplexity of one document that is read through the cache, 64 rows a run. */
async function perplexity(
  base: LoadedBase,
  cacheType: CacheType,
  ids: readonly number[],
  precision: Precision = 'fast',
): Promise<number> {
  const blocks = blocksFor(ids.length)
  const executor = await Executor.open({
    base,
    precision,
    cacheType,
    blocks,
    blocksPerSequence: blocks,
    maxSequences: 1,
    prefillTokens: 32,
    decodeRows: rowsPerRun,
    editsPerDraw: 1,
    slots: null,
    adapterLeaf: () => null,
  })
  const table = Array.from({ length: blocks }, (_, i) => i)
  let sum = 0
  let count = 0
  for (let from = 0; from < ids.length - 1; from += rowsPerRun) {
    const rows = Array.from({ length: Math.min(rowsPerRun, ids.length - 1 - from) }, (_, i) => from + i)
    const batch: Batch = {
      ids: rows.map((i) => ids[i]!),
      positions: rows,
      sequences: rows.map(() => 0),
      slots: rows.map(() => -1),
      tables: [table],
      draws: rows.map((i, row) => ({
        row,
        position: i + 1,
        sampling: resolveSampling(undefined, base.config.vocabSize),
        edits: [{ token: ids[i + 1]!, count: 0, generated: 0, bias: certain }],
        allowed: null,
      })),
    }
    const { tokens, logps } = await executor.run('decode', batch)
    rows.forEach((i, row) => {
      if (tokens[row] !== ids[i + 1]) throw new Error('a forced token was not drawn')
      sum -= logps[row]!
      count++
    })
  }
  executor.close()
  return Math.exp(sum / count)
}

/** Blocks and prompt tokens that samples of one prompt take. */
async function sharing(base: LoadedBase, ids: readonly number[]) {
  const engine = await Engine.open({ base, drafts: null, maxSequences: samples, maxSequenceTokens: 2048 })
  const promptIds = ids.slice(0, promptTokens)
  const sampling = { maxNewTokens: newTokens, temperature: 1 }
  const streams = engine.submitMany(
    Array.from({ length: samples }, (_, seed) => ({ promptIds, sampling: { ...sampling, seed } })),
  )
  let generated = 0
  let most = { ratio: 0, blocks: 0 }
  const texts = new Set<string>()
  await Promise.all(
    streams.map(async (stream) => {
      const own: number[] = []
      for await (const { id } of stream) {
        own.push(id)
        generated++
        // As every sample nears its end: nothing has been given back yet.
        if (own.length === newTokens - 1) {
          const { used } = engine.statistics().blocks
          const ratio = (used * blockTokens) / (promptTokens + generated)
          if (used > most.blocks) most = { ratio, blocks: used }
        }
      }
      texts.add(own.join())
    }),
  )
  const { promptTokens: asked, cachedTokens } = engine.statistics()
  await engine.close()
  return {
    samples,
    promptTokens,
    prefillTokens: asked - cachedTokens,
    newTokens: generated,
    distinctSamples: texts.size,
    usedBlocks: most.blocks,
    cacheRatio: most.ratio,
  }
}

async function measure({ base: dir }: { base: string }) {
  const runtime = await openRuntime({ allowFallback: false })
  const base = await loadBase(runtime, openBase(dir))
  const ids = benchTextIds()
  const document = Array.from({ length: Math.min(scoredTokens, ids.length) }, (_, i) => ids[i]!)
  const say = (what: string) => process.stderr.write(`[longContext] ${what}\n`)
  say(`perplexity of ${document.length} tokens, bf16 cache`)
  const wide = await perplexity(base, 'bf16', document)
  say('the same, int8 cache')
  const narrow = await perplexity(base, 'int8', document)
  say('the same in strict arithmetic')
  const strict = await perplexity(base, 'f32', document, 'strict')
  say(`${samples} samples of one prompt`)
  const prefix = await sharing(base, ids)
  const result = {
    int8Cache: {
      tokens: document.length,
      bytesRatio: blockBytes(base, 'int8') / blockBytes(base, 'bf16'),
      perplexity: narrow,
      perplexity16: wide,
      perplexityRatio: narrow / wide,
    },
    fastMode: { perplexity: wide, strictPerplexity: strict, perplexityRatio: wide / strict },
    prefix,
  }
  base.close()
  await runtime.close()
  return result
}

const file = fileURLToPath(import.meta.url)

/** → the figures as one object. */
export async function benchLongContext(_argv: string[]): Promise<Record<string, unknown>> {
  return (await runChild<Record<string, unknown>>(file, { base: await benchBase() })).result
}

const task = childInput<{ base: string }>()
if (task && process.argv[1] === file) await reportToParent(() => measure(task))
