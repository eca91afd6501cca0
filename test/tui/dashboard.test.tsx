// The dashboard as text: empty, in the middle of a run and after a failure, at 40, 80 and 120 columns.
import { Box } from 'ink'
import { describe, expect, it } from 'vitest'
import type { TrainingEvent } from '../../src/index.js'
import { Dashboard } from '../../src/tui/dashboard.js'
import { panels } from '../../src/tui/panels/index.js'
import { emptyState, reduce } from '../../src/tui/run-state.js'
import { failed, finished, midRun, start, stepAt } from './events.js'
import { draw } from './fake-terminal.js'

const stateOf = (events: readonly TrainingEvent[]) => events.reduce(reduce, emptyState('quickstart'))

function screen(events: readonly TrainingEvent[], columns: number, rows = 50): string {
  return draw(<Dashboard state={stateOf(events)} columns={columns} rows={rows} />, columns)
}

const runs = { empty: [], midRun, failed, finished }

describe.each(Object.entries(runs))('%s', (_, events) => {
  it.each([40, 80, 120])('at %i columns', (columns) => {
    const frame = screen(events, columns)
    for (const line of frame.split('\n')) expect(line.length).toBeLessThanOrEqual(columns)
    expect(frame).toMatchSnapshot()
  })

  it('every panel fits into its lines at 40, 80 and 120 columns', () => {
    for (const panel of Object.values(panels)) {
      for (const width of [36, 76, 116]) {
        const frame = draw(
          <Box width={width} flexDirection="column">
            <panel.Component state={stateOf(events)} width={width} height={panel.height} />
          </Box>,
          width,
        )
        const lines = frame.split('\n')
        expect(lines.length, panel.title).toBeLessThanOrEqual(panel.height)
        for (const line of lines) expect(line.length, panel.title).toBeLessThanOrEqual(width)
      }
    }
  })
})

it('a low screen shows what matters most and never scrolls', () => {
  for (const rows of [10, 16, 24, 30]) {
    const frame = screen(midRun, 80, rows)
    expect(frame.split('\n').length).toBeLessThan(rows)
    expect(frame).toContain('step 25/40')
  }
})

it('says everything in words and signs, without colour', () => {
  expect(screen(failed, 80)).toContain('✘ failed')
  // biome-ignore lint/suspicious/noControlCharactersInRegex: looks for escape sequences
  expect(screen(midRun, 80)).not.toMatch(/\x1b\[/)
})

it('keeps a bounded number of steps of a long run', () => {
  let state = reduce(emptyState('long'), start)
  for (let step = 1; step <= 5000; step++) state = reduce(state, stepAt(step))
  expect(state.steps.length).toBeLessThanOrEqual(1024)
  expect(state.steps.at(-1)!.step).toBeGreaterThan(4990 - state.stride)
  expect(state.step!.step).toBe(5000)
})
