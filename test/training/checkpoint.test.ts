// Checkpoints as files: atomic, verified, pruned; damage is named and passed over only when asked for.
import { appendFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import {
  CheckpointError,
  checkpointName,
  hashLayout,
  listCheckpoints,
  loadCheckpoint,
  loadLatestCheckpoint,
  pruneCheckpoints,
  removeLeftovers,
  restoreProgram,
  saveCheckpoint,
  type TrainState,
} from '../../src/training/checkpoint.js'
import { openMetricsLog } from '../../src/training/metrics-log.js'
import { createToyProgram } from './toy-program.js'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-checkpoint-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const program = createToyProgram()
const stateAt = (step: number): TrainState => ({
  step,
  epoch: step / 10,
  seed: 1,
  tokens: 0,
  targetTokens: 0,
  loader: { position: step },
  evaluation: { first: undefined, last: undefined, best: undefined, stale: 0 },
})
const identity = { recipeHash: 'a', layoutHash: hashLayout(program.layout), isa: 'avx2', versions: { espalier: '0' } }
const save = (step: number) => saveCheckpoint({ folder, program, state: stateAt(step), identity })

it('gives back what was written', async () => {
  const path = await saveCheckpoint({
    folder,
    program,
    state: stateAt(3),
    identity,
    exportAdapter: (to) => writeFileSync(join(to, 'adapter_config.json'), '{}'),
  })
  const loaded = loadCheckpoint(path)
  expect(loaded).toMatchObject({ ...identity, state: { step: 3, loader: { position: 3 } } })
  const other = createToyProgram({ seed: 9 })
  restoreProgram(loaded, other)
  expect(other.params).toEqual(program.params)
  expect(readFileSync(join(path, 'adapter', 'adapter_config.json'), 'utf8')).toBe('{}')
})

it('ignores and removes what a killed writer left', async () => {
  await save(1)
  mkdirSync(join(folder, '.writing-step-00000002-99'))
  writeFileSync(join(folder, '.writing-step-00000002-99', 'state.json'), '{}')
  mkdirSync(join(folder, checkpointName(5)))
  expect(listCheckpoints(folder).map(({ step }) => step)).toEqual([1])
  removeLeftovers(folder)
  expect(loadLatestCheckpoint(folder)!.state.step).toBe(1)
})

it('replaces a checkpoint of the same step', async () => {
  await save(2)
  await save(2)
  expect(listCheckpoints(folder)).toHaveLength(1)
})

const damages: Record<string, (path: string) => void> = {
  'params.f32: has': (path) => truncateSync(join(path, 'params.f32'), 8),
  'adam-m.f32: does not have the content': (path) => {
    const bytes = readFileSync(join(path, 'adam-m.f32'))
    bytes[17] = bytes[17]! ^ 1
    writeFileSync(join(path, 'adam-m.f32'), bytes)
  },
  'adam-v.f32: is missing': (path) => rmSync(join(path, 'adam-v.f32')),
  'state.json: cannot be read': (path) => truncateSync(join(path, 'state.json'), 40),
  'state.json: version 2': (path) => writeFileSync(join(path, 'state.json'), '{"version":2}'),
  'state.json: lacks': (path) => writeFileSync(join(path, 'state.json'), '{"version":1}'),
}
for (const [message, damage] of Object.entries(damages)) {
  it(`names a damaged file (${message}) and falls back only when told`, async () => {
    await save(1)
    damage(await save(2))
    expect(() => loadLatestCheckpoint(folder)).toThrow(message)
    expect(() => loadLatestCheckpoint(folder)).toThrow(CheckpointError)
    const skipped: string[] = []
    const loaded = loadLatestCheckpoint(folder, { fallback: true, onSkip: (error) => skipped.push(error.message) })
    expect(loaded!.state.step).toBe(1)
    expect(skipped).toHaveLength(1)
  })
}

it('refuses another layout', async () => {
  const path = await save(1)
  expect(() => restoreProgram(loadCheckpoint(path), createToyProgram({ rank: 2 }))).toThrow('another layout')
})

it('keeps the newest and the best', async () => {
  for (const step of [2, 4, 6, 8]) await save(step)
  pruneCheckpoints(folder, { last: 2, best: true }, 2)
  expect(listCheckpoints(folder).map(({ step }) => step)).toEqual([2, 6, 8])
  pruneCheckpoints(folder, { last: 1, best: false }, 2)
  expect(listCheckpoints(folder).map(({ step }) => step)).toEqual([8])
})

it('continues metrics.jsonl behind the step that is resumed', () => {
  const path = join(folder, 'metrics.jsonl')
  const step = (n: number) => ({ type: 'evaluation' as const, step: n, loss: n, metrics: {}, isBest: false })
  const start = { type: 'runStart' as const, runDir: '', recipe: '', totalSteps: 9, base: '', device: '' }
  const first = openMetricsLog(path)
  first.listener({ ...start, startStep: 0 })
  for (const n of [1, 2, 3, 4]) first.listener(step(n))
  first.close()
  appendFileSync(path, '{"type":"evaluation","step":5,"eval/lo')
  const second = openMetricsLog(path)
  second.listener({ type: 'warning', message: 'before the start' })
  second.listener({ ...start, startStep: 3, evaluatedStep: 2 })
  second.listener(step(3))
  second.close()
  const lines = readFileSync(path, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(lines.map((line) => line.step ?? line.type)).toEqual(['runStart', 1, 2, 'warning', 'runStart', 3])
})
