import { afterEach, expect, it, vi } from 'vitest'
import { canDraw } from '../../src/tui/can-draw.js'

afterEach(() => vi.unstubAllEnvs())

it('a screen is drawn on a terminal that is no CI and no dumb one', () => {
  const terminal = { isTTY: true } as NodeJS.WriteStream
  vi.stubEnv('TERM', 'xterm')
  vi.stubEnv('CI', 'false')
  vi.stubEnv('CONTINUOUS_INTEGRATION', undefined)
  expect(canDraw(terminal)).toBe(true)
  expect(canDraw({} as NodeJS.WriteStream)).toBe(false)
  for (const [name, value] of [
    ['CI', 'true'],
    ['CI', ''],
    ['CONTINUOUS_INTEGRATION', '1'],
    ['TERM', 'dumb'],
  ] as const) {
    const before = process.env[name]
    vi.stubEnv(name, value)
    expect(canDraw(terminal), `${name}=${value}`).toBe(false)
    vi.stubEnv(name, before)
  }
})
