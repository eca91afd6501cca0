// The dashboard on a real pseudo-terminal: a tiny run through the command line.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { build, root } from '../cli/espalier.js'

const onTerminal = fileURLToPath(new URL('./on-terminal.py', import.meta.url))
let folder: string
beforeAll(() => {
  build()
  folder = mkdtempSync(join(tmpdir(), 'espalier-terminal-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const hasPython = spawnSync('python3', ['--version']).status === 0
if (!hasPython) console.warn('SKIPPED: the dashboard on a pseudo-terminal needs python3')

it.skipIf(!hasPython)('draws the run, leaves the last state, and never scrolls', () => {
  const rows = 30
  const recipe = join(root, 'recipes', 'tiny.ts')
  const command = [
    process.execPath,
    join(root, 'bin', 'espalier.mjs'),
    'run',
    recipe,
    '--run-dir',
    join(folder, 'run'),
    '--set',
    'stage.maxSteps=40',
  ]
  const env: Record<string, string | undefined> = {
    ...process.env,
    NO_COLOR: '1',
    TERM: 'xterm',
    ESPALIER_CACHE: join(folder, 'cache'),
  }
  for (const name of ['CI', 'FORCE_COLOR', 'CONTINUOUS_INTEGRATION', 'GITHUB_ACTIONS']) delete env[name]
  const { status, stdout } = spawnSync('python3', [onTerminal, '100', String(rows), ...command], {
    encoding: 'utf8',
    env,
    maxBuffer: 1 << 28,
  })
  expect(status, stdout.slice(-2000)).toBe(0)
  // biome-ignore lint/suspicious/noControlCharactersInRegex: takes escape sequences out
  const text = stdout.replaceAll(/\x1b\[[\d;?]*[A-Za-z]/g, '')
  const last = text.slice(text.lastIndexOf('╭─ espalier'))
  expect(last).toContain('✔ completed  tiny')
  expect(last).toContain('step 40/40')
  expect(last).toMatch(/[\u2801-\u28ff]/)
  expect(last.slice(0, last.lastIndexOf('╯')).split('\n').length).toBeLessThan(rows)
  expect(last).toContain('run directory')
  // biome-ignore lint/suspicious/noControlCharactersInRegex: looks for an erased screen
  expect(stdout).not.toMatch(/\x1b\[2J|\x1b\[3J/)
})
