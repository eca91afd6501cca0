// `bench -- decode`: the engine on the real base. One sequence at a short and at the longest context against the memory
// bandwidth, 32 sequences and a prompt of 512 tokens against the arithmetic ceiling; probes and runs in one process.
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { Engine } from '../../src/inference/engine.js'
import type { EngineRequest } from '../../src/inference/request.js'
import { openBase } from '../../src/models/base-directory.js'
import { type LoadedBase, loadBase } from '../../src/models/loaded-base.js'
import { openRuntime, type Runtime } from '../../src/runtime/index.js'
import { benchBase, benchTextIds } from './base.js'
import { childInput, median, reportToParent, runChild } from './process-tree.js'

const shortContext = 128
const longContext = 8192
const newTokens = 64
const batch = 32
const promptTokens = 512
const rounds = 7
/** GFLOP of the matrix products of one token, head included; of the head alone. */
const gflopPerToken = 0.269
const headGflop = 0.0566

interface DecodeTask {
  base: string
  strict: boolean
  quick: boolean
}

/** `count` ids of real text from `at` on, wrapping around. */
function textFrom(at: number, count: number): number[] {
  const ids = benchTextIds()
  return Array.from({ length: count }, (_, i) => ids[(at + i) % ids.length]!)
}

/** Bytes of the weights that a token reads: every matrix once, the tied head as such. */
function weightBytes(base: LoadedBase, tensors: Iterable<readonly [string, { byteLength: number }]>): number {
  const isUntiedEmbedding = (name: string) =>
    !base.config.tieWordEmbeddings && name.startsWith('model.embed_tokens.weight')
  let bytes = 0
  for (const [name, { byteLength }] of tensors) if (!isUntiedEmbedding(name)) bytes += byteLength
  return bytes
}

/** Milliseconds between the tokens of requests that run together, after the first ones. */
async function decodeIntervals(engine: Engine, requests: readonly EngineRequest[]): Promise<number[]> {
  const intervals: number[] = []
  const streams = engine.submitMany(requests)
  await Promise.all(
    streams.map(async (stream, i) => {
      let last: number | undefined
      let seen = 0
      for await (const _ of stream) {
        const now = performance.now()
        // The first steps share their time with prompts.
        if (i === 0 && last !== undefined && seen > 4) intervals.push(now - last)
        last = now
        seen++
      }
    }),
  )
  return intervals
}

async function measure(task: DecodeTask) {
  const runtime: Runtime = await openRuntime({ allowFallback: false })
  const opened = openBase(task.base)
  const base = await loadBase(runtime, opened)
  const { config } = base
  const weights = weightBytes(base, opened.tensors)
  const cachePerToken = 2 * config.numHiddenLayers * config.numKeyValueHeads * config.headDim * (task.strict ? 4 : 2)
  const attentionGflop = (context: number) =>
    (4 * config.numHiddenLayers * config.numAttentionHeads * config.headDim * context) / 1e9
  const engine = await Engine.open({
    base,
    precision: task.strict ? 'strict' : 'fast',
    drafts: null,
    maxSequences: batch,
    maxSequenceTokens: longContext,
    blocks: 600,
  })
  const say = (text: string) => process.stderr.write(`[decode] ${text}\n`)
  const bandwidths: number[] = []
  const ceilings: number[] = []
  let kind: 'fp32' | 'bf16' = 'fp32'
  const probe = async () => {
    bandwidths.push(await runtime.measureReadBandwidth())
    const ceiling = await runtime.measureCeiling(40)
    kind = ceiling.kind
    ceilings.push(ceiling.gflops)
  }
  const sampling = { maxNewTokens: newTokens }
  let at = 0
  const fresh = (count: number) => {
    at += 997
    return textFrom(at, count)
  }
  const one = (context: number): EngineRequest => ({ promptIds: fresh(context - newTokens / 2), sampling })

  await decodeIntervals(engine, [one(shortContext)])
  const shortMs: number[] = []
  const batchMs: number[] = []
  const prefillMs: number[] = []
  for (let round = 0; round < (task.quick ? 2 : rounds); round++) {
    await probe()
    shortMs.push(median(await decodeIntervals(engine, [one(shortContext)])))
    batchMs.push(
      median(
        await decodeIntervals(
          engine,
          Array.from({ length: batch }, () => one(shortContext)),
        ),
      ),
    )
    const begin = performance.now()
    for await (const _ of engine.submit({ promptIds: fresh(promptTokens), sampling: { maxNewTokens: 1 } }));
    prefillMs.push(performance.now() - begin)
  }
  say(`${shortContext} tokens: ${(1000 / median(shortMs)).toFixed(1)} tokens/s; prompt of ${longContext} tokens`)
  const begin = performance.now()
  const long = one(longContext - newTokens)
  const longMs = median(await decodeIntervals(engine, [long]))
  const longSeconds = (performance.now() - begin) / 1000
  await probe()
  await engine.close()
  base.close()

  const readGBs = median(bandwidths)
  const ceilingGflops = median(ceilings)
  const bytesAt = (context: number) => weights + cachePerToken * context
  const tokensPerSecond = 1000 / median(shortMs)
  const tokensPerSecond8k = 1000 / longMs
  const longAverage = long.promptIds.length + newTokens / 2
  const batchRate = (1000 * batch) / median(batchMs)
  const prefillGflop = promptTokens * (gflopPerToken - headGflop + attentionGflop(promptTokens / 2)) + headGflop
  const prefillRate = 1000 / median(prefillMs)
  const bandwidthShare = (bytes: number, rate: number) => (bytes * rate) / 1e9 / readGBs
  const result = {
    isa: runtime.info.isa,
    threads: runtime.info.threads,
    precision: task.strict ? 'fp32' : 'fast',
    tokensPerSecond,
    bytesPerToken: bytesAt(shortContext),
    readGBs,
    bandwidthUtilization: bandwidthShare(bytesAt(shortContext), tokensPerSecond),
    tokensPerSecond8k,
    bytesPerToken8k: bytesAt(longAverage),
    bandwidthUtilization8k: bandwidthShare(bytesAt(longAverage), tokensPerSecond8k),
    prefill8kSeconds: longSeconds - (newTokens * longMs) / 1000,
    ceiling: kind,
    ceilingGflops,
    batch32TokensPerSecond: batchRate,
    batch32Mfu: (batchRate * (gflopPerToken + attentionGflop(shortContext))) / ceilingGflops,
    prefillTokensPerSecond: prefillRate * promptTokens,
    prefillMfu: (prefillGflop * prefillRate) / ceilingGflops,
  }
  await runtime.close()
  return result
}

const file = fileURLToPath(import.meta.url)

/** `[--strict] [--quick]` → the figures as one object. */
export async function benchDecode(argv: string[]): Promise<Record<string, unknown>> {
  const { values } = parseArgs({
    args: argv,
    options: {
      strict: { type: 'boolean', default: false },
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean' },
    },
  })
  const task: DecodeTask = { base: await benchBase(), strict: values.strict, quick: values.quick }
  const { result, peakRssMb } = await runChild<Record<string, unknown>>(file, task)
  return { ...result, peakRssMb }
}

const task = childInput<DecodeTask>()
if (task && process.argv[1] === file) await reportToParent(() => measure(task))
