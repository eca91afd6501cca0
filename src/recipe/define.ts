// The mark of a recipe module. It is a registered symbol, so that a recipe made by another copy of this package is known.
import type { RecipeInput } from './schema.js'

export const recipeBrand = Symbol.for('espalier.recipe')

export type Recipe = RecipeInput & { readonly [recipeBrand]: true }

/**
 * Declares a recipe: the default export of a recipe module. Checked when it is loaded.
 * @example export default defineRecipe({ name: 'mine', base: 'smollm2-135m-instruct', data: { train: 'rows.jsonl' }, stage: { type: 'sft' } })
 */
export function defineRecipe(recipe: RecipeInput): Recipe {
  return { ...recipe, [recipeBrand]: true }
}

export function isRecipe(value: unknown): value is Recipe {
  return typeof value === 'object' && value !== null && (value as Record<symbol, unknown>)[recipeBrand] === true
}
