// What the golden rates do not cover: the recipe form of a schedule and its errors.
import { expect, it } from 'vitest'
import { learningRateAt, scheduleSchema } from '../../src/training/schedules.js'

it('takes a name or a record, fills in defaults', () => {
  expect(scheduleSchema.parse('cosine')).toEqual({ type: 'cosine', numCycles: 0.5 })
  expect(scheduleSchema.parse({ type: 'warmup_stable_decay', numDecaySteps: 4 })).toMatchObject({ decayType: 'cosine' })
})

it('refuses an option that the schedule does not have', () => {
  expect(() => scheduleSchema.parse({ type: 'linear', numCycles: 2 })).toThrow('schedule linear')
  expect(() => scheduleSchema.parse({ type: 'cosine', numCycle: 2 })).toThrow('numCycles')
  expect(() => scheduleSchema.parse('cosinus')).toThrow()
})

it('never leaves [0, peak], also past the end and without warm-up', () => {
  for (const type of [
    'constant',
    'constant_with_warmup',
    'linear',
    'cosine',
    'cosine_with_restarts',
    'inverse_sqrt',
  ] as const) {
    for (const warmupSteps of [0, 3]) {
      for (let step = 0; step < 15; step++) {
        const rate = learningRateAt(step, scheduleSchema.parse(type), {
          baseLearningRate: 2,
          warmupSteps,
          totalSteps: 10,
        })
        expect(rate).toBeGreaterThanOrEqual(0)
        expect(rate).toBeLessThanOrEqual(2)
      }
    }
  }
})
