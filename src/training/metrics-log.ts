// `metrics.jsonl` of a run directory: one line per step, evaluation and notable event, written as it happens.
// A resumed run continues the file after the step that it resumes from.
import { closeSync, existsSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs'
import type { Listener, TrainingEvent } from './events.js'

type Line = Record<string, unknown>

/** The lines worth keeping; null for the rest. Metric names are `group/name`. */
const lines: { [T in TrainingEvent['type']]: (event: Extract<TrainingEvent, { type: T }>) => Line | null } = {
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
    'perf/rssMb': event.rssMb,
  }),
  evaluation: (event) => ({ step: event.step, 'eval/loss': event.loss, ...event.metrics, isBest: event.isBest }),
  sample: ({ type: _, ...rest }) => rest,
  checkpoint: ({ type: _, ...rest }) => rest,
  warning: ({ message }) => ({ message }),
  error: ({ message }) => ({ message }),
  runEnd: ({ reason, step }) => ({ reason, step }),
}

/** Length of the part that belongs to steps up to `lastStep`: a torn line or a later step ends it. */
function keptBytes(path: string, lastStep: number): number {
  const content = readFileSync(path)
  let kept = 0
  while (kept < content.length) {
    const end = content.indexOf(10, kept)
    if (end < 0) break
    let line: Line
    try {
      line = JSON.parse(content.toString('utf8', kept, end))
    } catch {
      break
    }
    if (typeof line.step === 'number' && line.step > lastStep) break
    kept = end + 1
  }
  return kept
}

export interface MetricsLog {
  listener: Listener
  close(): void
}

/** Opens the log; `resumeStep` cuts what a previous process wrote about later steps. */
export function openMetricsLog(path: string, resumeStep?: number): MetricsLog {
  const keep = resumeStep !== undefined && existsSync(path) ? keptBytes(path, resumeStep) : 0
  const file = openSync(path, keep > 0 ? 'r+' : 'w')
  ftruncateSync(file, keep)
  let position = keep
  let isOpen = true
  return {
    listener(event) {
      if (!isOpen) return
      const line = (lines[event.type] as (event: TrainingEvent) => Line | null)(event)
      if (line === null) return
      const text = `${JSON.stringify({ type: event.type, time: new Date().toISOString(), ...line })}\n`
      // One write per line: a killed process tears at most the last one
      position += writeSync(file, text, position)
    },
    close() {
      if (isOpen) closeSync(file)
      isOpen = false
    },
  }
}
