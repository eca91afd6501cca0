// What the recipe room offers to the SDK.
export { defineRecipe, isRecipe, type Recipe, recipeBrand } from './define.js'
export { RecipeError } from './errors.js'
export { importModule, type LoadRecipeOptions, loadRecipe, resolvePipeline, resolveRecipe } from './load.js'
export {
  definePipeline,
  isPipeline,
  type Pipeline,
  type PipelineInput,
  pipelineSchema,
  type ResolvedPipeline,
  recipeOfStage,
} from './pipeline.js'
export { type RecipeInput, type ResolvedRecipe, recipeSchema } from './schema.js'
