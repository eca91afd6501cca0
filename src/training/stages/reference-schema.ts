// Which frozen model log-probabilities are compared with, as a recipe says it.
import { z } from 'zod'
import type { ReferenceModel } from '../context.js'

export const referenceSchema = z
  .union([
    z.enum(['base', 'start']),
    z.strictObject({ adapter: z.string().min(1).describe('a PEFT folder, or stage:NAME') }),
  ])
  .describe('base: the base alone; start: the adapter that training starts from; or another adapter')

export const cacheReferenceSchema = z
  .boolean()
  .default(false)
  .describe(
    'compute the reference log-probabilities of all training rows once, before the first step, and keep them in the cache',
  )

/** @throws-free check: with a start adapter the reference must be named; without one it is the base */
export function checkReference(
  stage: { reference?: ReferenceModel | undefined; startAdapter?: string | undefined },
  isNeeded: boolean,
  problem: (path: string[], message: string) => void,
): void {
  if (stage.reference === 'start' && stage.startAdapter === undefined) {
    problem(['reference'], "'start' is the adapter that training starts from: name one in startAdapter, or use 'base'")
  }
  if (isNeeded && stage.reference === undefined && stage.startAdapter !== undefined) {
    problem(
      ['reference'],
      "training starts from an adapter: say what it is compared with ('start', 'base' or { adapter: … })",
    )
  }
  if (!isNeeded && stage.reference !== undefined) {
    problem(['reference'], 'this loss compares with no reference model: remove it')
  }
}
