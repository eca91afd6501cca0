// `bench -- train`: throughput, memory and accuracy of the training step on one document a step, every token a target.
// Each measurement is a process of its own, so that peaks are of that process; the comparison in fp32 is another.
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { estimateMemory } from '../../src/training/plan.js'
import type { MicroBatch } from '../../src/training/program.js'
import { benchTextIds, openBenchProgram, type ShapeName, shapes } from './base.js'
import { childInput, median, reportToParent, runChild } from './process-tree.js'

const warmUpSteps = 5
const timedSteps = 15
const ceilingProbeMs = 40
const shortTokens = 512
const shortRepeats = 5
/** GFLOP of a step per token, as the table of required figures counts them (recomputation does not count). */
const gflopPerToken: Record<string, number> = { 'smollm2-135m 1024': 0.673, 'llama-3.2-1b 512': 5.11 }
const mib = 2 ** 20

interface TrainTask {
  folder: string
  isReal: boolean
  tokens: number
  warmUp: number
  timed: number
  strict: boolean
  probes: boolean
}

interface TrainMeasure {
  losses: number[]
  stepSeconds: number[]
  ceilings: number[]
  ceiling: 'fp32' | 'bf16' | undefined
  plannedMb: number
  flopsPerToken: number
  isa: string | null
  threads: number
  base: string
}

/** Step `index`: a window of real text from the reference values, or random ids where the base has another vocabulary. */
function documentOf(index: number, tokens: number, vocabSize: number, isReal: boolean): MicroBatch {
  const at = index * 137
  let idAt: (i: number) => number
  if (isReal) {
    const ids = benchTextIds()
    idAt = (i) => ids[(at + i) % ids.length]!
  } else {
    // Knuth's multiplicative hash: spread over the vocabulary, and the same in every process
    idAt = (i) => (Math.imul(at + i + 1, 2654435761) >>> 0) % vocabSize
  }
  return {
    inputIds: Int32Array.from({ length: tokens }, (_, i) => idAt(i)),
    labels: Int32Array.from({ length: tokens }, (_, i) => idAt(i + 1)),
    positionIds: Int32Array.from({ length: tokens }, (_, i) => i),
    cuSeqlens: Int32Array.of(0, tokens),
    documents: [index],
  }
}

async function measure(task: TrainTask): Promise<TrainMeasure> {
  const opened = await openBenchProgram({ folder: task.folder, maxTokens: task.tokens, strict: task.strict })
  const { program, runtime } = opened
  const result: TrainMeasure = {
    losses: [],
    stepSeconds: [],
    ceilings: [],
    ceiling: undefined,
    plannedMb: estimateMemory(program.plannedBytes).totalMb,
    flopsPerToken: program.flopsPerToken(task.tokens),
    isa: runtime.info.isa,
    threads: runtime.info.threads,
    base: opened.name,
  }
  const probe = async () => {
    if (!task.probes) return
    const { kind, gflops } = await runtime.measureCeiling(ceilingProbeMs)
    result.ceiling = kind
    result.ceilings.push(gflops)
  }
  for (let index = 0; index < task.warmUp + task.timed; index++) {
    const batch = documentOf(index, task.tokens, opened.vocabSize, task.isReal)
    const isTimed = index >= task.warmUp
    if (isTimed) await probe()
    const begin = performance.now()
    const { lossSum } = await program.accumulate(batch, { first: true, lossScale: 1 / task.tokens, rngStep: index + 1 })
    await program.update({
      learningRate: 2e-4,
      beta1: 0.9,
      beta2: 0.999,
      epsilon: 1e-8,
      weightDecay: 0,
      maxGradNorm: 1,
      step: index + 1,
    })
    if (isTimed) result.stepSeconds.push((performance.now() - begin) / 1000)
    result.losses.push(lossSum)
  }
  await probe()
  return result
}

const file = fileURLToPath(import.meta.url)
const run = (task: TrainTask) => runChild<TrainMeasure>(file, task)

/** Peak of a process that has trained one step of each length, against one that has trained 32 tokens. */
async function measureGrowth(where: Pick<TrainTask, 'folder' | 'isReal'>, lengths: number[]) {
  // Two steps: the second is the first at which every buffer has been touched in its final place
  const onePeak = async (tokens: number) =>
    (await run({ ...where, tokens, warmUp: 0, timed: 2, strict: false, probes: false })).peakRssMb
  // The garbage of a start moves a peak by 10 to 20 MB, a tenth of what 512 tokens add: medians of the short ones.
  const peakOf = async (tokens: number) => {
    const peaks: number[] = []
    for (let i = 0; i < (tokens <= shortTokens ? shortRepeats : 1); i++) peaks.push(await onePeak(tokens))
    return median(peaks)
  }
  const floor = await peakOf(32)
  const rows: { tokens: number; peakRssMb: number; bytesPerToken: number }[] = []
  for (const tokens of lengths) {
    const peakRssMb = await peakOf(tokens)
    rows.push({ tokens, peakRssMb, bytesPerToken: ((peakRssMb - floor) * mib) / tokens })
  }
  const of = (tokens: number) => rows.find((row) => row.tokens === tokens)?.bytesPerToken
  const longest = of(Math.max(...lengths))
  const shortest = of(Math.min(...lengths))
  return { peakAt32TokensMb: floor, lengths: rows, bytesPerTokenRatio: longest! / shortest! }
}

/** The figures of one shape and length. */
async function measureThroughput(
  where: Pick<TrainTask, 'folder' | 'isReal'>,
  shape: ShapeName,
  tokens: number,
  compare: boolean,
) {
  const task = { ...where, tokens, warmUp: warmUpSteps, timed: timedSteps, strict: false, probes: true }
  const { result: fast, peakRssMb } = await run(task)
  const strict = compare ? (await run({ ...task, strict: true, probes: false })).result : undefined
  const tokensPerSecond = tokens / median(fast.stepSeconds)
  const ceilingGflops = Math.max(...fast.ceilings) // a moment at a lower clock is no lower ceiling
  const gflop = gflopPerToken[`${shape} ${tokens}`] ?? fast.flopsPerToken / 1e9
  return {
    base: fast.base,
    tokens,
    isa: fast.isa,
    threads: fast.threads,
    tokensPerSecond,
    ceiling: fast.ceiling,
    ceilingGflops,
    gflopPerToken: gflop,
    mfu: (tokensPerSecond * gflop) / ceilingGflops,
    peakRssMb,
    plannedMb: fast.plannedMb,
    plannedOverPeak: fast.plannedMb / peakRssMb,
    ...(strict
      ? { lossGapToStrict: Math.max(...fast.losses.map((loss, i) => Math.abs(loss - strict.losses[i]!))) }
      : {}),
    losses: fast.losses,
  }
}

/** `[--shape smollm2-135m|llama-3.2-1b] [--tokens N[,N...]] [--no-strict]` → the figures as one object. */
export async function benchTrain(argv: string[]): Promise<Record<string, unknown>> {
  const { values } = parseArgs({
    args: argv,
    options: {
      shape: { type: 'string', default: 'smollm2-135m' },
      tokens: { type: 'string', default: '1024' },
      'no-strict': { type: 'boolean', default: false },
      json: { type: 'boolean' },
    },
  })
  if (!(values.shape in shapes)) throw new Error(`--shape ${values.shape}: known are ${Object.keys(shapes).join(', ')}`)
  const shape = values.shape as ShapeName
  const lengths = values.tokens.split(',').map(Number)
  if (lengths.some((tokens) => !(Number.isInteger(tokens) && tokens > 0))) {
    throw new Error(`--tokens ${values.tokens}: give whole numbers separated by commas`)
  }
  const where = { folder: await shapes[shape].folder(), isReal: shapes[shape].isReal }
  if (lengths.length > 1) return measureGrowth(where, lengths)
  return measureThroughput(where, shape, lengths[0]!, shape === 'smollm2-135m' && !values['no-strict'])
}

const task = childInput<TrainTask>()
if (task && process.argv[1] === file) await reportToParent(() => measure(task))
