// A made-up run for tests of the screen: fixed numbers, the same each time.
import type { RunResult, TrainingEvent } from '../../src/index.js'

export const start: TrainingEvent = {
  type: 'runStart',
  runDir: '/runs/quickstart-1',
  recipe: 'quickstart',
  totalSteps: 40,
  startStep: 0,
  base: 'SmolLM2-135M-Instruct Q4_1',
  device: 'cpu avx2, 2 threads',
}

export function stepAt(step: number): TrainingEvent {
  return {
    type: 'step',
    step,
    epoch: step / 40,
    loss: 0.5 + 3 * Math.exp(-step / 8) + (step % 3) / 20,
    gradNorm: 1.25,
    learningRate: 2e-4 * (1 - step / 40),
    tokens: 1024,
    targetTokens: 120,
    tokensPerSecond: 150 + (step % 5),
    ceilingShare: 0.56,
    rssMb: 600 + step,
    etaSeconds: (40 - step) * 7,
  }
}

const evaluation = (step: number, loss: number): TrainingEvent => ({
  type: 'evaluation',
  step,
  loss,
  metrics: { 'eval/accuracy': 0.5 + step / 100 },
  isBest: true,
})

const result: RunResult = {
  runDir: '/runs/quickstart-1',
  reason: 'completed',
  step: 40,
  totalSteps: 40,
  trainLoss: 0.6,
  before: undefined,
  after: undefined,
  best: undefined,
  adapter: '/runs/quickstart-1/adapter',
  trainSeconds: 280,
  totalSeconds: 300,
  tokensPerSecond: 151,
  peakRssMb: 640,
}

const steps = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => stepAt(from + i))

export const midRun: TrainingEvent[] = [
  start,
  evaluation(0, 3.4),
  { type: 'sample', step: 0, prompt: 'Is this mail spam?', text: 'I am a helpful assistant.', source: 'base' },
  ...steps(1, 20),
  evaluation(20, 1.1),
  { type: 'checkpoint', step: 20, path: '/runs/quickstart-1/checkpoints/step-00000020' },
  { type: 'sample', step: 20, prompt: 'Is this mail spam?', text: 'Yes', source: 'adapter' },
  { type: 'warning', message: '3 of 400 rows are longer than maxLength 256 and were cut (120 tokens fell away)' },
  ...steps(21, 25),
]

export const failed: TrainingEvent[] = [
  ...midRun,
  {
    type: 'error',
    message: 'step 26: the loss is NaN; rows 17, 41; first bad tensor: model.layers.0.self_attn.q_proj.lora_A',
  },
  { type: 'runEnd', reason: 'failed', step: 25 },
]

export const finished: TrainingEvent[] = [
  ...midRun,
  ...steps(26, 40),
  evaluation(40, 0.8),
  { type: 'runEnd', reason: 'completed', step: 40, result },
]
