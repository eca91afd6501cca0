// A recipe of several stages: each is a recipe of its own over the shared base, and may name the result of an earlier one
// as `stage:NAME` wherever an adapter is asked for.
import { z } from 'zod'
import { stageSchema } from '../training/index.js'
import { recipeBrand } from './define.js'
import { adapterSchema, baseSchema, dataSchema, type ResolvedRecipe, recipeSchema, runtimeSchema } from './schema.js'

const stageReference = /^stage:(.+)$/

/** Names of earlier stages that a stage's settings refer to. */
export function referencesOf(value: unknown): string[] {
  if (typeof value === 'string') return stageReference.exec(value)?.slice(1) ?? []
  if (typeof value !== 'object' || value === null) return []
  return Object.values(value).flatMap(referencesOf)
}

/** The settings with `stage:NAME` replaced by that stage's adapter. */
export function withReferences(value: unknown, adapterOf: (stage: string) => string): unknown {
  if (typeof value === 'string') {
    const found = stageReference.exec(value)
    return found ? adapterOf(found[1]!) : value
  }
  if (Array.isArray(value)) return value.map((item) => withReferences(item, adapterOf))
  if (typeof value !== 'object' || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, withReferences(item, adapterOf)]))
}

const partSchema = z.strictObject({
  /** Instead of the recipe's own. */
  adapter: adapterSchema.optional(),
  data: dataSchema.optional(),
  stage: stageSchema,
})

export const pipelineSchema = z
  .strictObject({
    /** Names the run directory. */
    name: recipeSchema.shape.name,
    base: baseSchema,
    adapter: adapterSchema.default({}),
    /** For the stages that name none. */
    data: dataSchema.optional(),
    /** In the order in which they run. */
    stages: z
      .record(z.string().regex(/^[A-Za-z]\w*$/, 'letters, digits and underscores only: it names a folder'), partSchema)
      .refine((stages) => Object.keys(stages).length > 0, 'names no stage'),
    runtime: runtimeSchema.optional(),
  })
  .superRefine((pipeline, context) => {
    const earlier: string[] = []
    for (const [name, part] of Object.entries(pipeline.stages)) {
      for (const reference of referencesOf(part.stage)) {
        if (earlier.includes(reference)) continue
        const known = earlier.length > 0 ? `before it run ${earlier.join(', ')}` : 'no stage runs before it'
        const message = `refers to stage:${reference}, and ${known}`
        context.addIssue({ code: 'custom', path: ['stages', name, 'stage'], message })
      }
      const parsed = recipeSchema.safeParse(compose(pipeline, name))
      for (const { path, message } of parsed.error?.issues ?? [])
        context.addIssue({ code: 'custom', path: ['stages', name, ...path], message })
      earlier.push(name)
    }
  })

export type PipelineInput = z.input<typeof pipelineSchema>
export type ResolvedPipeline = z.output<typeof pipelineSchema>
export type Pipeline = PipelineInput & { readonly [recipeBrand]: true }

function compose(pipeline: Omit<ResolvedPipeline, never>, name: string): unknown {
  const { adapter, data, stage } = pipeline.stages[name]!
  return {
    name: `${pipeline.name}.${name}`,
    base: pipeline.base,
    adapter: adapter ?? pipeline.adapter,
    data: data ?? pipeline.data,
    stage,
    ...(pipeline.runtime ? { runtime: pipeline.runtime } : {}),
  }
}

/**
 * One stage as a recipe of its own.
 * @param adapterOf folder of the adapter that an earlier stage left
 */
export function recipeOfStage(
  pipeline: ResolvedPipeline,
  name: string,
  adapterOf: (stage: string) => string,
): ResolvedRecipe {
  const recipe = compose(pipeline, name) as ResolvedRecipe
  return { ...recipe, stage: withReferences(recipe.stage, adapterOf) as ResolvedRecipe['stage'] }
}

/**
 * Declares a recipe of several stages: the default export of a recipe module.
 * @example definePipeline({ name: 'mine', base: 'smollm2-135m-instruct', stages: { sft: { data, stage: { type: 'sft' } }, … } })
 */
export function definePipeline(pipeline: PipelineInput): Pipeline {
  return { ...pipeline, [recipeBrand]: true }
}

export const isPipeline = (recipe: object): recipe is ResolvedPipeline => 'stages' in recipe && !('stage' in recipe)
