// What the comparisons with golden losses share: reading, naming, tolerances, and the runtime of the kernels.
import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, expect } from 'vitest'
import { openRuntime } from '../../src/runtime/index.js'
import type { Runtime } from '../../src/runtime/types.js'
import { goldenDir } from './folder.js'
import type { Target } from './run-graph.js'

export type Nested = number | Nested[]
export const flat = (nested: Nested): number[] => (Array.isArray(nested) ? nested.flatMap(flat) : [nested])
export const readLosses = (name: string) => JSON.parse(readFileSync(goldenDir('losses', name), 'utf8'))
export const camel = (key: string) => key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
export const targets: Target[] = ['lowered', 'kernels']

/** What a tolerance is relative to. `value`: the entry itself, and where that is below 1 a third of 1. */
export type Scale = 'entry' | 'largest' | 'absolute' | 'value'

/** float64 to its last digits; fp32 as the README allows. */
export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number,
  scale: Scale,
): void {
  expect(actual.length).toBe(expected.length)
  const largest = Math.max(...Array.from(expected, Math.abs), Number.MIN_VALUE)
  const zero = tolerance < 1e-9 ? 1e-12 : 1e-7
  for (let i = 0; i < expected.length; i++) {
    const value = expected[i]!
    const entry = Math.abs(value)
    const size = { entry, largest, absolute: 1, value: entry < 1 ? 1 / 3 : entry }[scale]
    const allowed = Math.max(tolerance * size, zero)
    const difference = Math.abs(actual[i]! - value)
    if (!(difference <= allowed)) throw new Error(`entry ${i}: ${actual[i]}, expected ${value} ± ${allowed}`)
  }
}

/** Tolerances from log-probabilities (3e-6, and 1e-6 absolute for values below 1) and from logits. */
export const tolerances = {
  logps: {
    lowered: { value: 1e-12, valueScale: 'entry', gradient: 1e-12, gradientScale: 'largest' },
    kernels: { value: 3e-6, valueScale: 'value', gradient: 3e-6, gradientScale: 'largest' },
  },
  logits: {
    lowered: { value: 1e-12, valueScale: 'entry', gradient: 1e-12, gradientScale: 'largest' },
    kernels: { value: 2e-6, valueScale: 'absolute', gradient: 1e-6, gradientScale: 'absolute' },
  },
} as const

/** Opens the runtime for a test file; where the kernels are not built, what needs them is skipped. */
export function openKernels(what: string) {
  let runtime: Runtime | undefined
  beforeAll(async () => {
    const opened = await openRuntime({ threads: 2 })
    if (opened.info.kernels) runtime = opened
    else console.warn(`${what}: kernels not run (${opened.info.reason})`)
  })
  afterAll(() => runtime?.close())
  return {
    get runtime() {
      return runtime
    },
    skipUnlessBuilt(target: Target, skip: (note?: string) => void) {
      if (target === 'kernels' && !runtime) skip('kernels not built')
    },
  }
}
