// Every kernel against its lowering, every gradient against central differences, and no kernel without a case.
import { readdirSync, readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openRuntime, usableIsas } from '../../src/runtime/index.js'
import type { Runtime } from '../../src/runtime/types.js'
import { opCases } from './cases/index.js'
import { checkGradients, compareCase, oracleOf } from './harness.js'

const runtimes = new Map<string, Runtime>()
beforeAll(async () => {
  for (const isa of usableIsas()) runtimes.set(isa, await openRuntime({ isa, allowFallback: false }))
})
afterAll(async () => {
  for (const runtime of runtimes.values()) await runtime.close()
})

const failures = (rows: { value: string; error: number; limit: number }[]) =>
  rows.filter((r) => !(r.error <= r.limit)).map((r) => `${r.value}: ${r.error.toExponential(2)} > ${r.limit}`)

describe.each(opCases.map((c) => [`${c.op}: ${c.name}`, c] as const))('%s', (_, opCase) => {
  it.each(['strict', 'fast'] as const)('kernels equal the lowering on every instruction set, %s', async (mode) => {
    const expected = await oracleOf(opCase, mode)
    expect(runtimes.size).toBeGreaterThan(0)
    for (const [isa, runtime] of runtimes)
      expect(failures(await compareCase(runtime, opCase, mode, expected)), isa).toEqual([])
  })
  if (opCase.wrt)
    it('gradient equals central differences', async () => {
      expect(failures(await checkGradients(opCase))).toEqual([])
    })
})

it('every kernel is covered by a case', () => {
  const folder = new URL('../../kernels/ops/', import.meta.url)
  const registered = readdirSync(folder)
    .filter((f) => f.endsWith('.cc'))
    .flatMap((f) => [...readFileSync(new URL(f, folder), 'utf8').matchAll(/^\s*\{"(\w+)",/gm)].map((m) => m[1]!))
  expect(registered.length).toBeGreaterThan(10)
  // A gradient kernel is covered by the case of its op.
  const covered = new Set(opCases.map((c) => c.op))
  expect(registered.filter((name) => !covered.has(name.replace(/Grad$/, '')))).toEqual([])
})
