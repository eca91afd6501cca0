// What a run tells the world (stop 12): one typed stream, read by the dashboard, the plain printer, the JSONL log
// and tests alike. Nothing else leaves a run while it goes on.

export type TrainingEvent =
  | StageStartEvent
  | StageEndEvent
  | RunStartEvent
  | ProgressEvent
  | StepEvent
  | EvaluationEvent
  | SampleEvent
  | CheckpointEvent
  | WarningEvent
  | ErrorEvent
  | RunEndEvent

/** A stage of a pipeline begins; its own run follows. */
export interface StageStartEvent {
  type: 'stageStart'
  stage: string
  /** 0-based. */
  index: number
  total: number
}

export interface StageEndEvent {
  type: 'stageEnd'
  stage: string
  index: number
  total: number
  /** It was finished before, from the same inputs. */
  isSkipped: boolean
}

export interface RunStartEvent {
  type: 'runStart'
  runDir: string
  recipe: string
  totalSteps: number
  /** Step that a resumed run continues after; 0 for a new one. */
  startStep: number
  /** Step of the last evaluation that a resumed run knows of. */
  evaluatedStep?: number
  base: string
  device: string
}

/** A long preparation: download, import, tokenizing, compiling, evaluating. */
export interface ProgressEvent {
  type: 'progress'
  task: string
  done: number
  total?: number
  unit: string
}

export interface StepEvent {
  type: 'step'
  /** 1-based optimizer step. */
  step: number
  /** Passes over the data completed so far, fractional. */
  epoch: number
  /** The objective, a mean over the whole step: of supervised tuning in nats per target token. */
  loss: number
  /** Before clipping. */
  gradNorm: number
  learningRate: number
  tokens: number
  targetTokens: number
  tokensPerSecond: number
  /** Arithmetic done over what the processor's widest multiply-add could have done; absent when not probed. */
  ceilingShare?: number
  /** Of the stage, `group/name` → value: rewards, accuracies, KL. */
  metrics?: Record<string, number>
  rssMb: number
  etaSeconds: number
}

export interface EvaluationEvent {
  type: 'evaluation'
  step: number
  /** Held-out NLL in nats per target token. */
  loss: number
  /** `group/name` → value, e.g. `eval/accuracy`. */
  metrics: Record<string, number>
  isBest: boolean
}

export interface SampleEvent {
  type: 'sample'
  step: number
  prompt: string
  text: string
  /** Whose words: `base` without the adapter. */
  source: 'base' | 'adapter'
}

export interface CheckpointEvent {
  type: 'checkpoint'
  step: number
  path: string
}

export interface WarningEvent {
  type: 'warning'
  message: string
}

export interface ErrorEvent {
  type: 'error'
  message: string
}

export type EndReason = 'completed' | 'earlyStopping' | 'interrupted' | 'failed'

export interface RunEndEvent {
  type: 'runEnd'
  reason: EndReason
  step: number
  result?: RunResult
}

export interface EvaluationResult {
  step: number
  loss: number
  metrics: Record<string, number>
}

export interface RunResult {
  runDir: string
  reason: EndReason
  /** Optimizer steps done, those before a resume included. */
  step: number
  totalSteps: number
  trainLoss: number | undefined
  before: EvaluationResult | undefined
  after: EvaluationResult | undefined
  best: EvaluationResult | undefined
  /** Exported PEFT folder; absent when the run was interrupted. */
  adapter: string | undefined
  trainSeconds: number
  totalSeconds: number
  /** Median over the steps of this process. */
  tokensPerSecond: number
  peakRssMb: number
}

/** Called in order with every event; must not throw (a listener that does is dropped with a warning). */
export type Listener = (event: TrainingEvent) => void

/** An event stream that keeps what nobody has read yet; iterating after the end gives what was left. */
export class EventStream implements AsyncIterable<TrainingEvent> {
  readonly #listeners = new Set<Listener>()
  readonly #queue: TrainingEvent[] = []
  #wake: (() => void) | undefined
  #isClosed = false

  listen(listener: Listener): void {
    this.#listeners.add(listener)
  }

  emit(event: TrainingEvent): void {
    for (const listener of this.#listeners) {
      try {
        listener(event)
      } catch (error) {
        this.#listeners.delete(listener)
        this.emit({ type: 'warning', message: `a listener failed and was dropped: ${(error as Error).message}` })
      }
    }
    this.#queue.push(event)
    this.#wake?.()
  }

  close(): void {
    this.#isClosed = true
    this.#wake?.()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<TrainingEvent> {
    while (true) {
      while (this.#queue.length > 0) yield this.#queue.shift()!
      if (this.#isClosed) return
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
      this.#wake = undefined
    }
  }
}
