// A run as lines of text, for output that is no terminal: logs, pipes, CI.
import type { Listener, TrainingEvent } from '../index.js'
import { describeEvaluation } from './run-state.js'
import { clock, fit, megabytes, percent } from './text.js'

/** Steps are shown at most this often, the first and the last always. */
const stepEveryMs = 2000
const progressEveryMs = 5000
const sampleCharacters = 160

/** What is worth a place in the line of a step. */
const keyNames = ['rewards/total', 'rewards/accuracies', 'rewards/margins', 'rewards/accuracy', 'kl/policyRef']

const keyMetrics = (metrics: Record<string, number> = {}) =>
  keyNames.flatMap((name) => (metrics[name] === undefined ? [] : `${name} ${metrics[name].toFixed(3)}`))

export function plainLines(write: (line: string) => void, now: () => number = Date.now): Listener {
  let lastStep = Number.NEGATIVE_INFINITY
  let lastProgress = Number.NEGATIVE_INFINITY
  let task = ''
  let totalSteps = 0
  const lines: {
    [Type in TrainingEvent['type']]: (event: Extract<TrainingEvent, { type: Type }>) => string | undefined
  } = {
    stageStart: ({ stage, index, total }) => `stage ${index + 1} of ${total}: ${stage}`,
    stageEnd: ({ stage, isSkipped }) =>
      isSkipped ? `stage ${stage}: finished before from the same inputs` : `stage ${stage}: finished`,
    runStart(event) {
      totalSteps = event.totalSteps
      const from = event.startStep > 0 ? `, going on after step ${event.startStep}` : ''
      return `${event.recipe}: ${event.totalSteps} steps${from} on ${event.base} (${event.device}) in ${event.runDir}`
    },
    progress(event) {
      const name = event.task.split(':')[0]!
      const isNew = name !== task
      if (!isNew && now() - lastProgress < progressEveryMs) return undefined
      task = name
      lastProgress = now()
      return event.total ? `${name}: ${percent(event.done / event.total)}` : `${name}: ${event.done} ${event.unit}`
    },
    step(event) {
      if (event.step !== totalSteps && now() - lastStep < stepEveryMs) return undefined
      lastStep = now()
      const parts = [
        `step ${event.step}/${totalSteps}`,
        `loss ${event.loss.toFixed(4)}`,
        `rate ${event.learningRate.toExponential(2)}`,
        `gradient ${event.gradNorm.toPrecision(3)}`,
        `${Math.round(event.tokensPerSecond)} tokens/s`,
        event.ceilingShare === undefined ? undefined : `${percent(event.ceilingShare)} of the ceiling`,
        ...keyMetrics(event.metrics),
        megabytes(event.rssMb),
        `left ${clock(event.etaSeconds)}`,
      ]
      return parts.filter(Boolean).join('  ')
    },
    evaluation: describeEvaluation,
    sample: (event) =>
      `step ${event.step}: ${event.source} on "${fit(event.prompt, 60)}": ${fit(event.text, sampleCharacters)}`,
    checkpoint: (event) => `step ${event.step}: checkpoint ${event.path}`,
    warning: (event) => `warning: ${event.message}`,
    error: (event) => `error: ${event.message}`,
    runEnd: (event) => `ended: ${event.reason} after step ${event.step}`,
  }
  return (event) => {
    const line = (lines[event.type] as (event: TrainingEvent) => string | undefined)(event)
    if (line !== undefined) write(line)
  }
}
