// Optimizer, clipping, schedules, token losses and the fused head against the reference values. Cases whose type is
// absent from our index maps are skipped and listed.
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { learningRateAt, schedules, scheduleSchema } from '../../src/training/schedules.js'
import { goldenDir } from './folder.js'

const read = (name: string) => JSON.parse(readFileSync(goldenDir('losses', name), 'utf8'))
const camel = (key: string) => key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())

describe('schedules', () => {
  const golden = read('optim.json').schedules as {
    baseLr: number
    warmupSteps: number
    trainingSteps: number
    cases: { label: string; name: string; arguments: Record<string, unknown>; lr: number[]; lrAfterLastStep: number }[]
  }
  for (const { label, name, arguments: given, lr, lrAfterLastStep } of golden.cases) {
    it.skipIf(!(name in schedules))(label, () => {
      const options = Object.fromEntries(Object.entries(given).map(([key, value]) => [camel(key), value]))
      const schedule = scheduleSchema.parse({ type: name, ...options })
      const context = {
        baseLearningRate: golden.baseLr,
        warmupSteps: golden.warmupSteps,
        totalSteps: golden.trainingSteps,
      }
      for (const [step, expected] of [...lr, lrAfterLastStep].entries()) {
        const rate = learningRateAt(step, schedule, context)
        expect(Math.abs(rate - expected), `step ${step}: ${rate}, expected ${expected}`).toBeLessThanOrEqual(
          1e-12 * Math.max(expected, golden.baseLr),
        )
      }
    })
  }
})
