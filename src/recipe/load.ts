// Recipe files to recipes (stop 2): TypeScript, JavaScript or JSON from any folder, `espalier` in them being the package
// that runs; paths in a recipe are relative to its file, those of --set to the working directory.
import { existsSync, readFileSync, statSync } from 'node:fs'
import { dirname, extname, isAbsolute, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { createJiti } from 'jiti'
import type { z } from 'zod'
import { messageOf } from '../data/errors.js'
import { knownBases } from '../models/fetch.js'
import { isRecipe } from './define.js'
import { describeIssues, RecipeError } from './errors.js'
import { parseOverride, withValue } from './override.js'
import { isPipeline, pipelineSchema, type ResolvedPipeline } from './pipeline.js'
import { type ResolvedRecipe, recipeSchema } from './schema.js'

export interface LoadRecipeOptions {
  /** `path.to.key=value`, applied in order. */
  set?: readonly string[]
}

/** Validates a recipe of one stage. @throws RecipeError with one line per problem */
export function resolveRecipe(recipe: unknown, name = 'recipe'): ResolvedRecipe {
  return validate(recipeSchema, recipe, name)
}

/** Validates a recipe of several stages. @throws RecipeError with one line per problem */
export function resolvePipeline(pipeline: unknown, name = 'recipe'): ResolvedPipeline {
  return validate(pipelineSchema, pipeline, name)
}

function validate<Schema extends z.ZodType>(schema: Schema, recipe: unknown, name: string): z.output<Schema> {
  const parsed = schema.safeParse(recipe)
  if (parsed.success) return parsed.data
  const lines = describeIssues(schema, recipe, parsed.error.issues)
  throw new RecipeError(lines.length === 1 ? `${name}: ${lines[0]}` : `${name}:\n  ${lines.join('\n  ')}`)
}

type Tree = Record<string, unknown>
const isTree = (value: unknown): value is Tree => typeof value === 'object' && value !== null && !Array.isArray(value)

/** Absolute paths in place of those relative to `folder`. A base that is a name stays one. */
function anchor(recipe: unknown, folder: string): unknown {
  if (!isTree(recipe)) return recipe
  const path = (value: unknown) =>
    typeof value === 'string' && !value.startsWith('stage:') ? resolve(folder, value) : value
  const paths = (value: unknown) => (Array.isArray(value) ? value.map(path) : path(value))
  const base = (value: unknown) => {
    if (typeof value !== 'string' || isAbsolute(value) || value.startsWith('hf:')) return value
    if (Object.hasOwn(knownBases, value.toLowerCase())) return value
    return /^\.\.?[/\\]/.test(value) || existsSync(resolve(folder, value)) ? resolve(folder, value) : value
  }
  const at = (value: unknown, changes: Record<string, (value: unknown) => unknown>): unknown => {
    if (!isTree(value)) return value
    const changed = { ...value }
    for (const [key, change] of Object.entries(changes)) if (key in changed) changed[key] = change(changed[key])
    return changed
  }
  const part = {
    data: (value: unknown) => at(value, { train: paths, heldOut: paths }),
    stage: (value: unknown) => at(value, { startAdapter: path, reference: (own) => at(own, { adapter: path }) }),
  }
  return at(recipe, {
    base: (value) => (isTree(value) ? at(value, { source: base }) : base(value)),
    ...part,
    stages: (value) =>
      isTree(value) ? Object.fromEntries(Object.entries(value).map(([name, own]) => [name, at(own, part)])) : value,
  })
}

/** The default export of a TypeScript or JavaScript module in which `espalier` is this package. */
export async function importModule(path: string, sdk: () => Promise<object>): Promise<unknown> {
  const jiti = createJiti(pathToFileURL(path).href, {
    virtualModules: { espalier: await sdk() },
    fsCache: false,
    moduleCache: false,
  })
  return jiti.import(path, { default: true })
}

/**
 * Loads a recipe module and validates it.
 * @param sdk what `espalier` is inside of the module
 * @throws RecipeError naming the file
 */
export async function loadRecipe(
  path: string,
  sdk: () => Promise<object>,
  options: LoadRecipeOptions = {},
): Promise<ResolvedRecipe | ResolvedPipeline> {
  const file = resolve(path)
  if (!existsSync(file) || !statSync(file).isFile()) {
    throw new RecipeError(`${path}: no such recipe file; \`espalier init\` writes one to start from`)
  }
  let recipe: unknown
  try {
    recipe = extname(file) === '.json' ? JSON.parse(readFileSync(file, 'utf8')) : await importModule(file, sdk)
  } catch (error) {
    throw new RecipeError(`${path}: cannot be loaded: ${messageOf(error)}`, { cause: error })
  }
  const isJson = extname(file) === '.json'
  if (!isJson && !isRecipe(recipe)) {
    throw new RecipeError(`${path}: has no recipe; write \`export default defineRecipe({ … })\``)
  }
  recipe = anchor(recipe, dirname(file))
  for (const text of options.set ?? []) {
    const { path: keys, value } = parseOverride(text)
    const changed = keys.reduceRight<unknown>((inner, key) => ({ [key]: inner }), value)
    let anchored: unknown = anchor(changed, process.cwd())
    for (const key of keys) anchored = (anchored as Tree)[key]
    recipe = withValue(recipe, keys, anchored)
  }
  return isTree(recipe) && isPipeline(recipe) ? resolvePipeline(recipe, path) : resolveRecipe(recipe, path)
}
