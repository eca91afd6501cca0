// Recipes from files: TypeScript from any folder, overrides, paths, and what is said about mistakes.
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { loadRecipe, type RecipeError, recipeSchema } from '../../src/index.js'
import { knownKeys } from '../../src/recipe/errors.js'

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-recipe-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const minimal = `
import { defineRecipe } from 'espalier'
export default defineRecipe({
  name: 'mine', base: 'smollm2-135m-instruct', data: { train: 'rows.jsonl', heldOut: 'held.jsonl' }, stage: { type: 'sft' },
})`

function write(name: string, text: string): string {
  const path = join(folder, name)
  mkdirSync(join(path, '..'), { recursive: true })
  writeFileSync(path, text)
  return path
}

const changed = (from: string, to: string) => write('changed.ts', minimal.replace(from, to))

async function messageOf(path: string, set: string[] = []): Promise<string> {
  const error = await loadRecipe(path, { set }).then(
    () => expect.fail('the recipe loads'),
    (reason: RecipeError) => reason,
  )
  expect(error.name).toBe('RecipeError')
  return error.message.replaceAll(folder, '')
}

describe('loading', () => {
  it('fills in defaults and anchors paths at the folder of the recipe', async () => {
    const recipe = await loadRecipe(write('a/b/mine.ts', minimal))
    expect(recipe).toMatchObject({
      name: 'mine',
      adapter: {},
      stage: { type: 'sft', learningRate: 2e-4, schedule: { type: 'linear' } },
    })
    expect(recipe.data.train).toBe(join(folder, 'a/b/rows.jsonl'))
    expect(recipe.base).toBe('smollm2-135m-instruct')
  })

  it('takes TypeScript, imports of other files, top-level await and JSON', async () => {
    write('c/rates.ts', 'export const rate: number = await Promise.resolve(3e-4)\nexport enum Kind { Sft = "sft" }')
    const path = write(
      'c/recipe.ts',
      `import { defineRecipe, type RecipeInput } from 'espalier'
import { Kind, rate } from './rates.js'
const wanted: number | undefined = await Promise.resolve(rate)
export default defineRecipe({ name: 'c', base: './base', data: { train: ['x.jsonl', '/y.jsonl'] }, stage: { type: Kind.Sft, learningRate: wanted! } } satisfies RecipeInput)`,
    )
    const recipe = await loadRecipe(path)
    expect(recipe.stage.learningRate).toBe(3e-4)
    expect(recipe.base).toBe(join(folder, 'c/base'))
    expect(recipe.data.train).toEqual([join(folder, 'c/x.jsonl'), '/y.jsonl'])
    const json = write(
      'c/recipe.json',
      JSON.stringify({ name: 'j', base: 'b', data: { train: 'x.jsonl' }, stage: { type: 'sft' } }),
    )
    expect((await loadRecipe(json)).name).toBe('j')
  })

  it('resolves to the same value again, as the run directory keeps it', async () => {
    const recipe = await loadRecipe(write('again.ts', minimal))
    const json = write('again.json', JSON.stringify(recipe))
    expect(await loadRecipe(json)).toEqual(recipe)
  })

  it('follows a link to a recipe', async () => {
    const path = write('d/real.ts', minimal)
    symlinkSync(path, join(folder, 'link.ts'))
    expect((await loadRecipe(join(folder, 'link.ts'))).name).toBe('mine')
  })
})

describe('--set', () => {
  it('takes JSON values and plain text, and makes what is not there', async () => {
    const set = [
      'stage.learningRate=1e-3',
      'adapter.targetModules=["q_proj"]',
      'name=other',
      'stage.schedule=cosine',
      'stage.evaluation.everySteps=5',
    ]
    const recipe = await loadRecipe(write('set.ts', minimal), { set })
    expect(recipe).toMatchObject({
      name: 'other',
      adapter: { targetModules: ['q_proj'] },
      stage: { learningRate: 1e-3, schedule: { type: 'cosine' }, evaluation: { everySteps: 5 } },
    })
  })

  it('takes paths from the working directory', async () => {
    const recipe = await loadRecipe(write('set.ts', minimal), { set: ['data.train=mine.jsonl'] })
    expect(recipe.data.train).toBe(join(process.cwd(), 'mine.jsonl'))
  })

  it('says how it is written', async () => {
    expect(await messageOf(write('set.ts', minimal), ['stage.learningRate'])).toMatch(
      '--set stage.learningRate: write it as',
    )
    expect(await messageOf(write('set.ts', minimal), ['__proto__.x=1'])).toMatch('write it as')
    expect(await messageOf(write('set.ts', minimal), ['stage.learnigRate=1'])).toMatch('did you mean "learningRate"?')
  })
})

describe('mistakes', () => {
  it.each([
    ["type: 'sft'", "type: 'sft', learningrate: 1e-4"],
    ["type: 'sft'", "type: 'sft', rank: 8"],
    ["type: 'sft'", "type: 'sft', colour: 'red'"],
    ["type: 'sft'", "type: 'sfft'"],
    ["type: 'sft'", "type: 'sft', schedule: 'cosin'"],
    ["type: 'sft'", "type: 'sft', schedule: { type: 'cosine', cycles: 1 }"],
    ["type: 'sft'", "type: 'sft', evaluation: { everyStep: 3 }"],
    ["type: 'sft'", "type: 'sft', learningRate: '1e-4'"],
    ["type: 'sft'", "type: 'sft', earlyStopping: { patience: 2 }"],
    ["base: 'smollm2-135m-instruct', ", ''],
    ["base: 'smollm2-135m-instruct'", "base: { source: 'x', fromat: 'int4' }"],
    ["base: 'smollm2-135m-instruct'", "base: { source: 'x', format: 'int5' }"],
    ["train: 'rows.jsonl', heldOut: 'held.jsonl'", ''],
    ["heldOut: 'held.jsonl'", "heldOut: 'rows.jsonl'"],
    [", heldOut: 'held.jsonl' }, stage: { type: 'sft' }", " }, stage: { type: 'sft', evaluation: { everySteps: 5 } }"],
    ["heldOut: 'held.jsonl'", "dataset: { name: 'x' }"],
    [
      "heldOut: 'held.jsonl' }",
      "heldOut: 'held.jsonl' }, adapter: { layersToTransform: [1], targetModules: '.*q_proj' }",
    ],
    ["heldOut: 'held.jsonl' }", "heldOut: 'held.jsonl', truncation: 'keepstart' }"],
    ["name: 'mine'", "name: '../mine'"],
    ["type: 'sft' }", "type: 'sft' }, stages: []"],
    ["type: 'sft' }", "type: 'sft' }, runtime: { isa: 'avx2', provider: 'cuda' }"],
    ["type: 'sft' }", "type: 'sft', maxStep: 3, maxLenght: 5 }, adaptor: {}"],
  ])('%s → %s', async (from, to) => {
    expect(await messageOf(changed(from, to))).toMatchSnapshot()
  })

  it('in the module itself name the file', async () => {
    expect(await messageOf(write('e/syntax.ts', 'export default {'))).toMatch('/e/syntax.ts: cannot be loaded:')
    expect(await messageOf(write('e/throws.ts', 'throw new Error("no luck")'))).toBe(
      '/e/throws.ts: cannot be loaded: no luck',
    )
    expect(await messageOf(write('e/plain.ts', 'export default { name: "x" }'))).toMatch(
      'has no recipe; write `export default defineRecipe',
    )
    expect(await messageOf(write('e/none.ts', 'export const a = 1'))).toMatch('has no recipe')
    expect(await messageOf(write('e/broken.json', '{"name":'))).toMatch('/e/broken.json: cannot be loaded:')
    expect(await messageOf(write('e/null.json', 'null'))).toMatch('/e/null.json:')
    expect(await messageOf(join(folder, 'nowhere.ts'))).toMatch('no such recipe file')
    expect(await messageOf(folder)).toMatch('no such recipe file')
    expect(await messageOf(write('e/import.ts', "import x from './gone.js'\nexport default x"))).toMatch('gone.js')
  })
})

it('knows the keys at every place', () => {
  expect(knownKeys(recipeSchema, [])).toEqual(['name', 'base', 'adapter', 'data', 'stage', 'runtime'])
  expect(knownKeys(recipeSchema, ['stage', 'evaluation'])).toContain('everySteps')
  expect(knownKeys(recipeSchema, ['base'])).toEqual(['source', 'format'])
})

/** Reproducible numbers in [0, 1) (mulberry32). */
function seeded(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Some characters replaced, removed, doubled, or the end cut off. */
function mutate(text: string, random: () => number): string {
  const characters = [...text]
  const at = () => Math.floor(random() * characters.length)
  for (let i = 0; i <= random() * 3; i++) {
    const kind = random()
    if (kind < 0.4) characters[at()] = '{}[]:,"\'0e-.\\\u0000é tfn'[Math.floor(random() * 20)]!
    else if (kind < 0.6) characters.splice(at(), 1 + Math.floor(random() * 8))
    else if (kind < 0.8) characters.splice(at(), 0, ...characters.slice(at(), at() + 8))
    else characters.length = at()
  }
  return characters.join('')
}

describe.each([
  [
    'json',
    JSON.stringify(
      {
        name: 'j',
        base: 'b',
        adapter: { rank: 4, alphaPattern: { q: 2 } },
        data: { train: 'x.jsonl' },
        stage: { type: 'sft', evaluation: { everySteps: 0 } },
      },
      null,
      1,
    ),
  ],
  ['ts', minimal],
])('1,000 mutated copies (%s)', (ending, original) => {
  it('load, or say what is wrong in which file', { timeout: 240_000 }, async () => {
    vi.spyOn(console, 'warn').mockImplementation(() => {}) // the TypeScript transform talks about what it reads
    const random = seeded(5)
    for (let i = 0; i < 1000; i++) {
      const path = write(`mutated-${i}.${ending}`, mutate(original, random))
      const error = await loadRecipe(path).then(
        () => undefined,
        (reason: unknown) => reason as Error,
      )
      if (!error) continue
      expect(error.name, `copy ${i}: ${error.stack}`).toBe('RecipeError')
      expect(error.message).toContain(`mutated-${i}.${ending}`)
    }
  })
})
