// Learning-rate schedules (stop 12): the rate used at each optimizer step, as transformers' `optimization.py`
// defines and names them. One table; recipe types and help derive from it.
import { z } from 'zod'

export interface ScheduleContext {
  /** Steps of warm-up. */
  warmupSteps: number
  /** Optimizer steps of the whole run. */
  totalSteps: number
  /** Peak learning rate; only schedules with absolute bounds read it. */
  baseLearningRate: number
}

export interface ScheduleDefinition<Options extends z.ZodObject = z.ZodObject> {
  readonly summary: string
  readonly options: Options
  /** Multiplier of the peak rate at 0-based `step`. */
  factor(step: number, context: ScheduleContext, options: z.infer<Options>): number
}

function defineSchedule<Options extends z.ZodObject>(definition: ScheduleDefinition<Options>): ScheduleDefinition {
  return definition as unknown as ScheduleDefinition
}

const none = z.strictObject({})
const rampUp = (step: number, warmupSteps: number) => step / Math.max(1, warmupSteps)
const progressAfter = (step: number, { warmupSteps, totalSteps }: ScheduleContext) =>
  (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps)
/** ½(1 + cos(2π·cycles·progress)): half a cycle falls from 1 to 0. */
const cosineFall = (progress: number, numCycles: number) => 0.5 * (1 + Math.cos(Math.PI * numCycles * 2 * progress))
const liftTo = (floor: number, factor: number) => Math.max(0, factor * (1 - floor) + floor)

const minimum = {
  minLr: z.number().nonnegative().optional().describe('lowest rate, absolute'),
  minLrRate: z.number().min(0).max(1).optional().describe('lowest rate, as a share of the peak'),
}
function floorOf(options: { minLr?: number; minLrRate?: number }, context: ScheduleContext): number {
  return options.minLrRate ?? (options.minLr ?? 0) / context.baseLearningRate
}

const shape = z.enum(['linear', 'cosine', '1-sqrt'])
type Shape = z.infer<typeof shape>
const rise: Record<Shape, (progress: number) => number> = {
  linear: (progress) => progress,
  cosine: (progress) => 0.5 * (1 - Math.cos(Math.PI * progress)),
  '1-sqrt': (progress) => 1 - Math.sqrt(1 - progress),
}
const fall: Record<Shape, (progress: number, numCycles: number) => number> = {
  linear: (progress) => 1 - progress,
  cosine: cosineFall,
  '1-sqrt': (progress) => 1 - Math.sqrt(progress),
}

export const schedules = {
  constant: defineSchedule({ summary: 'one rate throughout, no warm-up', options: none, factor: () => 1 }),
  constant_with_warmup: defineSchedule({
    summary: 'linear warm-up, then constant',
    options: none,
    factor: (step, context) => (step < context.warmupSteps ? rampUp(step, context.warmupSteps) : 1),
  }),
  linear: defineSchedule({
    summary: 'linear warm-up, then linearly to 0',
    options: none,
    factor(step, context) {
      if (step < context.warmupSteps) return rampUp(step, context.warmupSteps)
      return Math.max(0, (context.totalSteps - step) / Math.max(1, context.totalSteps - context.warmupSteps))
    },
  }),
  cosine: defineSchedule({
    summary: 'linear warm-up, then half a cosine to 0',
    options: z.strictObject({ numCycles: z.number().positive().default(0.5) }),
    factor(step, context, options) {
      if (step < context.warmupSteps) return rampUp(step, context.warmupSteps)
      return Math.max(0, cosineFall(progressAfter(step, context), options.numCycles))
    },
  }),
  cosine_with_restarts: defineSchedule({
    summary: 'linear warm-up, then cosine falls with hard restarts',
    options: z.strictObject({ numCycles: z.int().positive().default(1) }),
    factor(step, context, options) {
      if (step < context.warmupSteps) return rampUp(step, context.warmupSteps)
      const progress = progressAfter(step, context)
      if (progress >= 1) return 0
      return Math.max(0, 0.5 * (1 + Math.cos(Math.PI * ((options.numCycles * progress) % 1))))
    },
  }),
  polynomial: defineSchedule({
    summary: 'linear warm-up, then a power of the remaining share down to `lrEnd`',
    options: z.strictObject({
      lrEnd: z.number().nonnegative().default(1e-7),
      power: z.number().positive().default(1),
    }),
    factor(step, context, options) {
      if (step < context.warmupSteps) return rampUp(step, context.warmupSteps)
      const { baseLearningRate, totalSteps, warmupSteps } = context
      if (step > totalSteps) return options.lrEnd / baseLearningRate
      const remaining = 1 - (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps)
      return ((baseLearningRate - options.lrEnd) * remaining ** options.power + options.lrEnd) / baseLearningRate
    },
  }),
  inverse_sqrt: defineSchedule({
    summary: 'linear warm-up, then 1/√step',
    options: z.strictObject({ timescale: z.number().positive().optional() }),
    factor(step, context, options) {
      if (step < context.warmupSteps) return rampUp(step, context.warmupSteps)
      // 10,000 without warm-up: transformers' default time scale
      const timescale = options.timescale ?? (context.warmupSteps || 10_000)
      return 1 / Math.sqrt((step + timescale - context.warmupSteps) / timescale)
    },
  }),
  cosine_with_min_lr: defineSchedule({
    summary: 'linear warm-up, then half a cosine to `minLr` or `minLrRate`',
    options: z.strictObject({ numCycles: z.number().positive().default(0.5), ...minimum }),
    factor(step, context, options) {
      if (step < context.warmupSteps) return rampUp(step, context.warmupSteps)
      return liftTo(floorOf(options, context), cosineFall(progressAfter(step, context), options.numCycles))
    },
  }),
  cosine_warmup_with_min_lr: defineSchedule({
    summary: 'warm-up from `warmupLrRate`, then half a cosine to `minLr` or `minLrRate`; no step at rate 0',
    options: z.strictObject({
      numCycles: z.number().positive().default(0.5),
      warmupLrRate: z.number().min(0).max(1).optional(),
      ...minimum,
    }),
    factor(step, context, options) {
      const { warmupSteps, totalSteps } = context
      if (step < warmupSteps) {
        const start = options.warmupLrRate
        if (start === undefined) return (step + 1) / Math.max(1, warmupSteps)
        return start + ((1 - start) * step) / Math.max(1, warmupSteps - 1)
      }
      const progress = (step - warmupSteps + 1) / Math.max(1, totalSteps - warmupSteps)
      return liftTo(floorOf(options, context), cosineFall(progress, options.numCycles))
    },
  }),
  warmup_stable_decay: defineSchedule({
    summary: 'warm-up, a plateau, then a fall over the last `numDecaySteps`',
    options: z.strictObject({
      numDecaySteps: z.int().positive(),
      warmupType: shape.default('linear'),
      decayType: shape.default('cosine'),
      minLrRatio: z.number().min(0).max(1).default(0),
      numCycles: z.number().positive().default(0.5),
    }),
    factor(step, context, options) {
      const { warmupSteps, totalSteps } = context
      if (step < warmupSteps) return liftTo(options.minLrRatio, rise[options.warmupType](rampUp(step, warmupSteps)))
      const decayStart = totalSteps - options.numDecaySteps
      if (step < decayStart) return 1
      const progress = (step - Math.max(decayStart, warmupSteps)) / options.numDecaySteps
      if (progress >= 1) return options.minLrRatio
      return liftTo(options.minLrRatio, fall[options.decayType](progress, options.numCycles))
    },
  }),
} satisfies Record<string, ScheduleDefinition>

export type ScheduleName = keyof typeof schedules

const names = Object.keys(schedules) as [ScheduleName, ...ScheduleName[]]

/** `'cosine'` or `{ type: 'cosine', numCycles: 0.5 }`. */
export const scheduleSchema = z
  .union([
    z.enum(names).transform((type) => ({ type }) as { type: ScheduleName; [option: string]: unknown }),
    z.looseObject({ type: z.enum(names) }),
  ])
  .transform((value, context) => {
    const { type, ...given } = value
    const options = schedules[type].options.safeParse(given)
    if (options.success) return { type, ...options.data } as ScheduleOptions
    for (const issue of options.error.issues) {
      context.addIssue({
        code: 'custom',
        path: issue.path,
        message: `schedule ${type}: ${issue.message} (its options: ${Object.keys(schedules[type].options.shape).join(', ') || 'none'})`,
      })
    }
    return z.NEVER
  })

export interface ScheduleOptions {
  type: ScheduleName
  [option: string]: unknown
}

/** The learning rate used at 0-based `step`. */
export function learningRateAt(step: number, schedule: ScheduleOptions, context: ScheduleContext): number {
  const { type, ...options } = schedule
  return context.baseLearningRate * schedules[type].factor(step, context, options)
}
