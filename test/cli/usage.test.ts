// What the command line says: help, wrong usage, exit codes, the starter of `init`.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { commands } from '../../src/cli/commands/index.js'
import { build, espalier, root } from './espalier.js'

let folder: string
beforeAll(() => {
  build()
  folder = mkdtempSync(join(tmpdir(), 'espalier-cli-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

it('--help names every command', async () => {
  const { code, stdout, stderr } = await espalier(['--help'])
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  for (const name of Object.keys(commands)) expect(stdout).toContain(`espalier ${name}`)
  expect(stdout).toContain('Exit codes')
})

it.each(Object.keys(commands))('%s --help', async (name) => {
  const { code, stdout } = await espalier([name, '--help'])
  expect(code).toBe(0)
  expect(stdout).toMatchSnapshot()
})

it('--version is that of the package', async () => {
  const { stdout } = await espalier(['--version'])
  expect(stdout.trim()).toBe(JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version)
})

describe('wrong usage ends with 2 and one message', () => {
  it.each([
    [[], /name a command/],
    [['trian'], /train|Did you mean|Unknown/],
    [['run'], /Not enough/],
    [['run', 'x.ts', '--epochs', '3'], /Unknown argument: epochs/],
    [['plan', 'x.ts', 'y.ts'], /Unknown argument: y.ts/],
    [['generate', 'base'], /prompt/],
    [['score', 'base', '--input', 'x.jsonl', '--precision', 'fp16'], /precision.*\n?.*fp32/s],
    [['run', 'x.ts', '--resume=a', '--run-dir=b'], /leave out --run-dir/],
  ])('%j', async (args, message) => {
    const { code, stdout, stderr } = await espalier(args)
    expect(stderr).toMatch(message)
    expect(stderr).not.toMatch(/^\s+at /m)
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
  })
})

describe('failures end with 1 and one message', () => {
  const hidden = { HOME: '/nonexistent', ESPALIER_CACHE: '/nonexistent/cache' }
  it.each([
    [['run', 'nowhere.ts'], /nowhere.ts: no such recipe file/],
    [['plan', 'nowhere.ts', '--json'], /nowhere.ts: no such recipe file/],
    [['eval', 'nowhere.ts'], /no such recipe file/],
    [['inspect', 'nowhere'], /nowhere: no such file or folder, and no base of that name/],
    [['import', 'nowhere.gguf', '--out', 'x'], /nowhere.gguf: no such file or folder/],
    [['score', 'nowhere', '--input', 'x.jsonl'], /nowhere: no such file/],
    [['generate', 'nowhere', '--prompt', 'x'], /nowhere: no such file/],
  ])('%j', async (args, message) => {
    const { code, stdout, stderr } = await espalier(args, { cwd: folder, env: hidden })
    expect(stderr).toMatch(message)
    expect(stderr).not.toMatch(/^\s+at /m)
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
  })

  it('with a stack where it is asked for', async () => {
    const { stderr } = await espalier(['run', 'nowhere.ts', '--verbose'])
    expect(stderr).toMatch(/^\s+at /m)
  })

  it('a recipe that is wrong names key and file', async () => {
    const path = join(folder, 'wrong.ts')
    writeFileSync(
      path,
      "import { defineRecipe } from 'espalier'\nexport default defineRecipe({ name: 'w', base: 'b', data: { train: 'x.jsonl' }, stage: { type: 'sft', learningrate: 1 } } as never)",
    )
    const { code, stderr } = await espalier(['run', path])
    expect(code).toBe(1)
    expect(stderr).toContain('wrong.ts: stage.learningrate: unknown key; did you mean "learningRate"?')
  })
})

describe('init', () => {
  it('writes a recipe whose types resolve, and replaces nothing', async () => {
    const dir = join(folder, 'new')
    const { code, stdout } = await espalier(['init', dir])
    expect(code).toBe(0)
    expect(stdout).toContain('recipe.ts')
    for (const name of ['recipe.ts', 'train.jsonl', 'held-out.jsonl', 'tsconfig.json'])
      expect(existsSync(join(dir, name))).toBe(true)
    const tsc = spawnSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', dir], {
      encoding: 'utf8',
    })
    expect(tsc.stdout + tsc.stderr).toBe('')
    const again = await espalier(['init', dir])
    expect(again.code).toBe(1)
    expect(again.stderr).toMatch(/has recipe.ts.* already/)
    expect((await espalier(['init', dir, '--force'])).code).toBe(0)
  })
})

it('doctor answers as JSON', async () => {
  const { code, stdout } = await espalier(['doctor', '--json'])
  expect(code).toBe(0)
  expect(JSON.parse(stdout)).toMatchObject({
    node: process.version,
    threads: expect.any(Number),
    onnxruntime: expect.stringMatching(/^\d/),
  })
})
