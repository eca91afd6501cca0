// `metrics.jsonl` of a run directory: one line per step, evaluation and notable event, written as it happens.
// A resumed run continues the file after the step that it resumes from.
import { closeSync, constants, existsSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs'
import type { Listener, TrainingEvent } from './events.js'

type Line = Record<string, unknown>

/** The lines worth keeping; null for the rest. Metric names are `group/name`. */
const lines: { [T in TrainingEvent['type']]: (event: Extract<TrainingEvent, { type: T }>) => Line | null } = {
  // A stage's log is that of its own run
  stageStart: () => null,
  stageEnd: () => null,
  runStart: ({ type: _, ...rest }) => rest,
  progress: () => null,
  step: (event) => ({
    step: event.step,
    epoch: event.epoch,
    'train/loss': event.loss,
    'train/gradNorm': event.gradNorm,
    'train/learningRate': event.learningRate,
    'train/tokens': event.tokens,
    'train/targetTokens': event.targetTokens,
    'perf/tokensPerSecond': event.tokensPerSecond,
    ...(event.ceilingShare === undefined ? {} : { 'perf/ceilingShare': event.ceilingShare }),
    ...event.metrics,
    'perf/rssMb': event.rssMb,
  }),
  evaluation: (event) => ({ step: event.step, 'eval/loss': event.loss, ...event.metrics, isBest: event.isBest }),
  sample: ({ type: _, ...rest }) => rest,
  checkpoint: ({ type: _, ...rest }) => rest,
  warning: ({ message }) => ({ message }),
  error: ({ message }) => ({ message }),
  runEnd: ({ reason, step }) => ({ reason, step }),
}

/** Length of the whole lines up to the first that satisfies `isAfter`. */
function keptBytes(path: string, isAfter: (line: Line) => boolean): number {
  if (!existsSync(path)) return 0
  const content = readFileSync(path)
  let kept = 0
  while (kept < content.length) {
    const end = content.indexOf(10, kept)
    if (end < 0) break
    try {
      if (isAfter(JSON.parse(content.toString('utf8', kept, end)))) break
    } catch {
      break // torn by a kill
    }
    kept = end + 1
  }
  return kept
}

export interface MetricsLog {
  listener: Listener
  close(): void
}

/**
 * Opens the log. `runStart` says after which step the run continues: what an earlier process wrote about later ones is
 * cut there, since they are done again.
 */
export function openMetricsLog(path: string): MetricsLog {
  const file = openSync(path, constants.O_RDWR | constants.O_CREAT)
  let position: number | undefined
  const waiting: string[] = []
  let isOpen = true
  // One write per line: a killed process tears at most the last one
  const write = (text: string) => {
    position! += writeSync(file, text, position)
  }
  const start = (isAfter: (line: Line) => boolean) => {
    position = keptBytes(path, isAfter)
    ftruncateSync(file, position)
    for (const text of waiting.splice(0)) write(text)
  }
  return {
    listener(event) {
      if (!isOpen) return
      const line = (lines[event.type] as (event: TrainingEvent) => Line | null)(event)
      if (line === null) return
      if (event.type === 'runStart' && position === undefined) {
        const { startStep, evaluatedStep = -1 } = event
        // A run without a checkpoint does everything again
        const isNew = startStep === 0 && evaluatedStep < 0
        start(({ type, step }) => {
          if (typeof step !== 'number') return false
          return isNew || step > (type === 'evaluation' ? evaluatedStep : startStep)
        })
      }
      const text = `${JSON.stringify({ type: event.type, time: new Date().toISOString(), ...line })}\n`
      if (position === undefined) waiting.push(text)
      else write(text)
    },
    close() {
      if (!isOpen) return
      if (position === undefined) start(() => false)
      closeSync(file)
      isOpen = false
    },
  }
}
