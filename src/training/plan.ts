// What a run will do and cost, before it does it (design §9 of silent failures: out of memory after an hour): steps,
// memory from the planner, time from a short probe of the compiled step.

import { readFileSync } from 'node:fs'
import { freemem } from 'node:os'
import type { DataDescription, PreparedRun } from './context.js'
import type { OfflineLoopOptions } from './loop.js'

export interface PlanReport {
  base: string
  device: string
  totalSteps: number
  epochs: number
  trainableParameters: number
  tokensPerStep: number
  targetTokensPerStep: number
  heldOutRows: number
  /** Counts, token-length quantiles and some rows with the trained tokens flagged. */
  data: DataDescription | undefined
  memory: MemoryEstimate
  time: TimeEstimate | undefined
}

export interface MemoryEstimate {
  plannedMb: number
  processMb: number
  totalMb: number
  availableMb: number
  fits: boolean
}

export interface TimeEstimate {
  secondsPerStep: number
  evaluationSeconds: number
  totalSeconds: number
  tokensPerSecond: number
}

const mib = 2 ** 20

/**
 * Resident memory of Node.js with this library, ONNX Runtime and its sessions, beside all planned buffers: measured
 * with `bench -- train` as peak minus plan.
 */
export const processOverheadBytes = 150 * mib

/** Memory that can be had without swapping. */
export function availableBytes(): number {
  try {
    const match = /^MemAvailable:\s+(\d+) kB/m.exec(readFileSync('/proc/meminfo', 'utf8'))
    const ofMachine = match ? Number(match[1]) * 1024 : freemem()
    return Math.min(ofMachine, cgroupRoom())
  } catch {
    return freemem()
  }
}

/** What the control group of a container still allows. */
function cgroupRoom(): number {
  try {
    const limit = readFileSync('/sys/fs/cgroup/memory.max', 'utf8').trim()
    if (limit === 'max') return Number.POSITIVE_INFINITY
    const inactive = /^inactive_file (\d+)/m.exec(readFileSync('/sys/fs/cgroup/memory.stat', 'utf8'))
    return Number(limit) - Number(readFileSync('/sys/fs/cgroup/memory.current', 'utf8')) + Number(inactive?.[1] ?? 0)
  } catch {
    return Number.POSITIVE_INFINITY
  }
}

/** Share of the available memory that training buffers may take unless the recipe says otherwise (design §3). */
const budgetShare = 0.6

export const defaultBudgetMb = (): number => Math.max(1, Math.floor((budgetShare * availableBytes()) / mib))

export function estimateMemory(plannedBytes: number): MemoryEstimate {
  const total = plannedBytes + processOverheadBytes
  const available = availableBytes()
  return {
    plannedMb: plannedBytes / mib,
    processMb: processOverheadBytes / mib,
    totalMb: total / mib,
    availableMb: available / mib,
    fits: total <= available,
  }
}

/** @throws when the plan does not fit, with what to change */
export function requireMemory(memory: MemoryEstimate): void {
  if (memory.fits) return
  throw new Error(
    `this run needs about ${Math.round(memory.totalMb)} MB and ${Math.round(memory.availableMb)} MB are available: ` +
      'lower stage.maxLength or stage.microBatchSize (use gradientAccumulationSteps instead), set stage.memoryBudgetMb, ' +
      'or take a smaller base',
  )
}

type PlanHooks = Pick<OfflineLoopOptions, 'lossUnits' | 'prepareStep'>

/** Steps, memory and time of a prepared run. Times a step of the data without taking it. */
export async function planRun(
  prepared: PreparedRun,
  options: { epochs: number; evaluations: number; probe: boolean; hooks?: PlanHooks | undefined },
): Promise<PlanReport> {
  const { program, loader, totalSteps, heldOut } = prepared
  const memory = estimateMemory(program.plannedBytes)
  const start = loader.getState()
  const first = await loader.next()
  loader.setState(start)
  if (!first) throw new Error('the training split holds no row to learn from')
  const tokensPerStep = first.microBatches.reduce((sum, { inputIds }) => sum + inputIds.length, 0)
  let time: TimeEstimate | undefined
  if (options.probe && memory.fits) {
    const fill = async () => (await options.hooks?.prepareStep?.(first)) ?? first.microBatches
    const microBatches = await fill()
    const [batch] = [...microBatches].sort((a, b) => b.inputIds.length - a.inputIds.length)
    const timeOf = async (run: () => Promise<unknown>) => {
      const begin = performance.now()
      await run()
      return (performance.now() - begin) / 1000
    }
    const lossScale = 1 / (options.hooks?.lossUnits?.(first) ?? first.targetTokens)
    const accumulate = () => program.accumulate(batch!, { first: true, lossScale, rngStep: 0 })
    const score = () => program.score(batch!)
    const best = async (run: () => Promise<unknown>) => {
      await run() // first touch of the memory
      return Math.min(await timeOf(run), await timeOf(run))
    }
    const secondsPerToken = (await best(accumulate)) / batch!.inputIds.length
    const scoreSecondsPerToken = (await best(score)) / batch!.inputIds.length
    const heldOutTokens =
      heldOut.documents.reduce((sum, { ids }) => sum + ids.length, 0) +
      heldOut.choices.reduce((sum, { prompt }) => sum + prompt.length, 0)
    const secondsPerStep = secondsPerToken * tokensPerStep + (options.hooks?.prepareStep ? await timeOf(fill) : 0)
    const evaluationSeconds = scoreSecondsPerToken * heldOutTokens
    time = {
      secondsPerStep,
      evaluationSeconds,
      totalSeconds: secondsPerStep * totalSteps + evaluationSeconds * options.evaluations,
      tokensPerSecond: tokensPerStep / secondsPerStep,
    }
  }
  return {
    base: prepared.base,
    device: prepared.device,
    totalSteps,
    epochs: options.epochs,
    trainableParameters: program.layout.tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0),
    tokensPerStep,
    targetTokensPerStep: first.targetTokens,
    heldOutRows: heldOut.documents.length + heldOut.choices.length,
    data: prepared.describeData?.(),
    memory,
    time,
  }
}
