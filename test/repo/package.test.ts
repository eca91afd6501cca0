// What the package promises: its entry points, commands and scripts lead somewhere, and the SDK is what recipes import.
import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, expect, it } from 'vitest'
import * as sdk from '../../src/index.js'
import { build, root } from '../cli/espalier.js'

const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
beforeAll(() => build())

it('entry points exist', () => {
  for (const path of Object.values<string>(manifest.exports['.'])) expect(existsSync(join(root, path)), path).toBe(true)
  for (const path of Object.values<string>(manifest.bin)) accessSync(join(root, path), constants.X_OK)
})

it('scripts name files that exist', () => {
  for (const [name, command] of Object.entries<string>(manifest.scripts)) {
    for (const [, path] of command.matchAll(/node (\S+)/g))
      expect(existsSync(join(root, path!)), `${name}: ${path}`).toBe(true)
  }
})

it('every package that is imported is a dependency, at one exact version', () => {
  for (const [name, version] of Object.entries<string>({ ...manifest.dependencies, ...manifest.devDependencies })) {
    expect(version, name).toMatch(/^\d+\.\d+\.\d+/)
  }
})

it('the SDK imported by name is the one in dist', async () => {
  const name = 'espalier'
  const path = join(root, manifest.exports['.'].default)
  expect(Object.keys(sdk).sort()).toEqual(Object.keys(await import(path)).sort())
  expect(Object.keys(sdk).sort()).toEqual(Object.keys(await import(name)).sort())
})

it('a recipe that is wrong is refused before anything is made', () => {
  const wrong = { name: 'x', base: 'b', data: { train: 'x.jsonl' }, stage: { type: 'sft', epoch: 1 } }
  expect(() => sdk.run(wrong as never)).toThrow('recipe: stage.epoch: unknown key; did you mean "epochs"?')
  expect(() => sdk.plan(wrong as never)).toThrow(sdk.RecipeError)
})
