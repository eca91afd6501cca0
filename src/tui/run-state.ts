// What the screen knows of a run: events folded into one value. Panels read it and nothing else.
import type {
  EndReason,
  EvaluationEvent,
  ProgressEvent,
  RunResult,
  RunStartEvent,
  SampleEvent,
  StepEvent,
  TrainingEvent,
} from '../index.js'

export interface LogLine {
  kind: 'info' | 'warning' | 'error'
  text: string
}

export interface RunState {
  readonly name: string
  /** Of a pipeline: which of how many. */
  readonly stage: { readonly name: string; readonly index: number; readonly total: number } | undefined
  readonly status: 'preparing' | 'training' | EndReason
  readonly start: RunStartEvent | undefined
  readonly progress: ProgressEvent | undefined
  readonly step: StepEvent | undefined
  /** Thinned out evenly once there are too many. */
  readonly steps: readonly StepEvent[]
  /** One in so many steps is kept. */
  readonly stride: number
  readonly evaluations: readonly EvaluationEvent[]
  /** The newest of every prompt and source. */
  readonly samples: readonly SampleEvent[]
  readonly log: readonly LogLine[]
  readonly peakRssMb: number
  readonly result: RunResult | undefined
}

const maxSteps = 1024
const maxLog = 50

export function emptyState(name: string): RunState {
  return {
    name,
    stage: undefined,
    status: 'preparing',
    start: undefined,
    progress: undefined,
    step: undefined,
    steps: [],
    stride: 1,
    evaluations: [],
    samples: [],
    log: [],
    peakRssMb: 0,
    result: undefined,
  }
}

const logged = (state: RunState, kind: LogLine['kind'], text: string) => [...state.log, { kind, text }].slice(-maxLog)

type Reducers = {
  [Type in TrainingEvent['type']]: (state: RunState, event: Extract<TrainingEvent, { type: Type }>) => RunState
}

const reducers: Reducers = {
  stageStart: (state, { stage, index, total }) => ({
    ...emptyState(state.name),
    stage: { name: stage, index, total },
    peakRssMb: state.peakRssMb,
    log: state.log,
  }),
  stageEnd: (state, { stage, isSkipped }) => ({
    ...state,
    log: logged(state, 'info', isSkipped ? `${stage}: finished before from the same inputs` : `${stage}: finished`),
  }),
  runStart: (state, event) => ({
    ...state,
    name: event.recipe,
    status: 'training',
    start: event,
    progress: undefined,
    log: event.startStep > 0 ? logged(state, 'info', `resumed after step ${event.startStep}`) : state.log,
  }),
  progress: (state, event) => ({
    ...state,
    progress: event.total !== undefined && event.done >= event.total ? undefined : event,
  }),
  step(state, event) {
    const peakRssMb = Math.max(state.peakRssMb, event.rssMb)
    const base = { ...state, step: event, peakRssMb, progress: undefined }
    if (event.step % state.stride !== 0) return base
    const steps = [...state.steps, event]
    if (steps.length <= maxSteps) return { ...base, steps }
    return { ...base, steps: steps.filter((_, i) => i % 2 === 1), stride: state.stride * 2 }
  },
  evaluation: (state, event) => ({
    ...state,
    progress: undefined,
    evaluations: [...state.evaluations, event],
    log: logged(state, 'info', describeEvaluation(event)),
  }),
  sample: (state, event) => ({
    ...state,
    samples: [
      ...state.samples.filter(({ prompt, source }) => prompt !== event.prompt || source !== event.source),
      event,
    ],
  }),
  checkpoint: (state, event) => ({ ...state, log: logged(state, 'info', `step ${event.step}: checkpoint`) }),
  warning: (state, event) => ({ ...state, log: logged(state, 'warning', event.message) }),
  error: (state, event) => ({ ...state, log: logged(state, 'error', event.message) }),
  runEnd: (state, event) => ({ ...state, status: event.reason, progress: undefined, result: event.result }),
}

export function describeEvaluation(event: EvaluationEvent): string {
  const metrics = Object.entries(event.metrics).map(([key, value]) => `, ${key} ${Number(value.toFixed(4))}`)
  return `step ${event.step}: held-out loss ${event.loss.toFixed(4)}${metrics.join('')}${event.isBest ? ' (best)' : ''}`
}

export function reduce(state: RunState, event: TrainingEvent): RunState {
  return (reducers[event.type] as (state: RunState, event: TrainingEvent) => RunState)(state, event)
}
