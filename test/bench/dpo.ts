// `bench -- dpo`: a step of DPO, reference computed in the step, against a supervised step of the same documents. Times
// alternate in one process; peaks are each of a process of its own.
import { fileURLToPath } from 'node:url'
import { preferenceLossSchema, termsOf } from '../../src/training/losses/preference/index.js'
import { fillPairs, pairBatch, preferenceObjective } from '../../src/training/objectives/preference.js'
import { tokenMean } from '../../src/training/objectives/token-mean.js'
import type { MicroBatch, TrainProgram } from '../../src/training/program.js'
import { benchBase, benchTextIds, openBenchPrograms } from './base.js'
import { childInput, median, reportToParent, runChild } from './process-tree.js'

const pairs = 2
const documentTokens = 256
const promptTokens = 64
const warmUpSteps = 3
const timedSteps = 15

const options = {
  terms: termsOf(preferenceLossSchema.parse('sigmoid')),
  beta: 0.1,
  ldAlpha: 1,
  useWeighting: false,
}
type Kind = 'sft' | 'dpo'
const objectives = { sft: tokenMean('crossEntropy'), dpo: preferenceObjective(options) }
const hyper = { learningRate: 1e-5, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0, maxGradNorm: 1 }

/** Step `index`: pairs of windows of real text, each behind its prompt. */
function batchOf(index: number): MicroBatch {
  const text = benchTextIds()
  const documents = 2 * pairs
  const total = documents * documentTokens
  const idAt = (d: number, i: number) => text[((index * documents + d) * 137 + i) % text.length]!
  const each = (value: (d: number, i: number) => number) =>
    Int32Array.from({ length: total }, (_, n) => value(Math.floor(n / documentTokens), n % documentTokens))
  const isTarget = (i: number) => i >= promptTokens - 1 && i + 1 < documentTokens
  return {
    inputIds: each(idAt),
    labels: each((d, i) => (isTarget(i) ? idAt(d, i + 1) : -100)),
    positionIds: each((_, i) => i),
    cuSeqlens: Int32Array.from({ length: documents + 1 }, (_, d) => d * documentTokens),
    groups: Array.from({ length: pairs }, (_, p) => index * pairs + p),
  }
}

const steps: Record<Kind, (program: TrainProgram, batch: MicroBatch, step: number) => Promise<number>> = {
  async sft(program, batch, step) {
    const targets = batch.labels.filter((label) => label >= 0).length
    const { lossSum } = await program.accumulate(batch, { first: true, lossScale: 1 / targets, rngStep: step })
    await program.update({ ...hyper, step })
    return lossSum
  },
  async dpo(program, batch, step) {
    const pair = pairBatch(batch, options)
    const { values } = await program.score(pair.batch, { model: 'reference' })
    const [filled] = fillPairs([pair], [values], options)
    const { lossSum } = await program.accumulate(filled!, { first: true, lossScale: 1 / pairs, rngStep: step })
    await program.update({ ...hyper, step })
    return lossSum
  },
}

interface Task {
  folder: string
  kinds: Kind[]
  timed: number
}
interface Measure {
  seconds: Record<Kind, number[]>
  losses: Record<Kind, number[]>
  base: string
}

async function measure({ folder, kinds, timed }: Task): Promise<Measure> {
  const opened = await openBenchPrograms({
    folder,
    programs: kinds.map((kind) => ({
      objective: objectives[kind],
      maxTokens: 2 * pairs * documentTokens,
      maxDocuments: 2 * pairs,
      maxDims: { P: pairs },
      reference: null,
    })),
  })
  const seconds: Measure['seconds'] = { sft: [], dpo: [] }
  const losses: Measure['losses'] = { sft: [], dpo: [] }
  for (let index = 0; index < warmUpSteps + timed; index++) {
    const batch = batchOf(index)
    for (const [i, kind] of kinds.entries()) {
      const begin = performance.now()
      losses[kind].push(await steps[kind](opened.programs[i]!, batch, index + 1))
      if (index >= warmUpSteps) seconds[kind].push((performance.now() - begin) / 1000)
    }
  }
  return { seconds, losses, base: opened.name }
}

const file = fileURLToPath(import.meta.url)

export async function benchDpo(): Promise<Record<string, unknown>> {
  const folder = await benchBase()
  const run = (task: Omit<Task, 'folder'>) => runChild<Measure>(file, { folder, ...task })
  const { result } = await run({ kinds: ['sft', 'dpo'], timed: timedSteps })
  const peaks = { sft: 0, dpo: 0 }
  for (const kind of ['sft', 'dpo'] as const) peaks[kind] = (await run({ kinds: [kind], timed: 2 })).peakRssMb
  const tokens = 2 * pairs * documentTokens
  return {
    base: result.base,
    tokens,
    targetTokens: 2 * pairs * (documentTokens - promptTokens),
    pairs,
    sftSeconds: median(result.seconds.sft),
    dpoSeconds: median(result.seconds.dpo),
    timeRatio: median(result.seconds.dpo.map((dpo, i) => dpo / result.seconds.sft[i]!)),
    sftPeakMb: peaks.sft,
    dpoPeakMb: peaks.dpo,
    memoryRatio: peaks.dpo / peaks.sft,
    firstLoss: result.losses.dpo[0],
  }
}

const task = childInput<Task>()
if (task && process.argv[1] === file) await reportToParent(() => measure(task))
