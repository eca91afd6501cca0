// What a recipe may say (stop 2): strict schemas, so that no key is ever ignored. The stage's part comes from the stages'
// map; here are base, adapter, data and runtime, and the checks between parts.
import { z } from 'zod'
import { type Dataset, formatNames, isDataset, type Metric, rowTypeNames, truncations } from '../data/index.js'
import { importFormats } from '../models/import.js'
import { ALL_LINEAR } from '../models/lora-config.js'
import { stageSchema } from '../training/index.js'

const count = z.int().positive()
const oneOrMore = <T extends z.ZodType>(item: T) => z.union([item, z.array(item).min(1)])
const formatKeys = Object.keys(importFormats) as [keyof typeof importFormats, ...(keyof typeof importFormats)[]]

export const baseSchema = z.union([
  z.string().min(1),
  z.strictObject({
    /** A known name, `hf:org/name`, or a path: a base directory, a .gguf file, a Hugging Face folder. */
    source: z.string().min(1),
    /** What its matrices become: the source's own 4 bits, int4, nf4, or none. */
    format: z.enum(formatKeys).optional(),
  }),
])

export const adapterSchema = z.strictObject({
  rank: count.optional(),
  alpha: z.number().positive().optional(),
  dropout: z.number().min(0).lt(1).optional(),
  /** Names, a regular expression over whole paths, or `all-linear`. */
  targetModules: oneOrMore(z.string().min(1)).optional(),
  excludeModules: oneOrMore(z.string().min(1)).optional(),
  layersToTransform: z.array(z.int().nonnegative()).min(1).optional(),
  layersPattern: z.array(z.string().min(1)).min(1).optional(),
  /** Rank of the linears whose path ends in the key. */
  rankPattern: z.record(z.string(), count).optional(),
  /** Alpha of the linears whose path ends in the key. */
  alphaPattern: z.record(z.string(), z.number().positive()).optional(),
  /** Scaling alpha / √rank in place of alpha / rank. */
  useRslora: z.boolean().optional(),
  /** A trained magnitude per output. */
  useDora: z.boolean().optional(),
  /** A uniform as PEFT's default (true), or normal with deviation 1/rank. */
  initLoraWeights: z.union([z.literal(true), z.literal('gaussian')]).optional(),
})

export const dataSchema = z.strictObject({
  /** A dataset module; instead of `train` and `heldOut`. */
  dataset: z.custom<Dataset>(isDataset, 'must be a dataset: the default export of a defineDataset module').optional(),
  /** Files of rows: .jsonl, .parquet, .arrow. */
  train: oneOrMore(z.string().min(1)).optional(),
  heldOut: oneOrMore(z.string().min(1)).optional(),
  format: z.enum(formatNames).optional(),
  /** Columns to read under other names: { text: 'body' } reads `body` as `text`. */
  columns: z.record(z.string(), z.string()).optional(),
  /** Found from the first row where absent. */
  type: z.enum(rowTypeNames).optional(),
  truncation: z.enum(truncations).optional(),
  /** Train on every assistant message (default) or the last one. */
  assistantTurns: z.enum(['all', 'last']).optional(),
  /** End texts and completions with the end-of-sequence token; default true. */
  appendEos: z.boolean().optional(),
  allowUntrainedStop: z.boolean().optional(),
  /** Which pairs rows of several scored answers make: the best against the worst (default), or every two. */
  pairs: z.enum(['extremes', 'all']).optional(),
  /** Jinja source in place of the base's own template. */
  chatTemplate: z.string().min(1).optional(),
  templateVariables: z.record(z.string(), z.unknown()).optional(),
  /** The answers that held-out rows are judged by: accuracy by comparing their log-probabilities. */
  choices: z.array(z.string().min(1)).min(2).optional(),
  /** Metrics over the answers to held-out rows, by name; a dataset module may state its own beside them. */
  metrics: z
    .record(
      z.string().regex(/^[A-Za-z]\w*$/, 'letters, digits and underscores only'),
      z.custom<Metric>((value) => typeof value === 'function', 'must be a function of {row, expected, answer}'),
    )
    .optional(),
})

export const runtimeSchema = z.strictObject({
  threads: count.optional(),
  isa: z.enum(['avx512bf16', 'avx512', 'avx2', 'portable']).optional(),
  provider: z.enum(['cpu', 'cuda', 'webgpu']).optional(),
  /** false: standard operators through onnxruntime-node, slower. */
  kernels: z.boolean().optional(),
  /** false: an unusable addon is an error instead of the slower path. */
  allowFallback: z.boolean().optional(),
})

export const recipeSchema = z
  .strictObject({
    /** Names the run directory. */
    name: z.string().regex(/^[\w][\w.-]*$/, 'letters, digits, dots, dashes and underscores only: it names a folder'),
    base: baseSchema,
    adapter: adapterSchema.default({}),
    data: dataSchema,
    stage: stageSchema,
    runtime: runtimeSchema.optional(),
  })
  .superRefine((recipe, context) => {
    const problem = (path: string[], message: string) => context.addIssue({ code: 'custom', path, message })
    const { data, adapter, stage, runtime } = recipe
    if (!data.dataset && data.train === undefined) {
      problem(['data'], 'name the rows to train on: data.dataset (a dataset module) or data.train (files)')
    }
    for (const key of ['train', 'heldOut', 'format', 'columns'] as const) {
      if (data.dataset && data[key] !== undefined) {
        problem(['data', key], `a dataset module gives its own rows: remove data.${key}, or data.dataset`)
      }
    }
    const list = (value: string | string[] | undefined) => (value === undefined ? [] : [value].flat())
    const shared = list(data.heldOut).find((path) => list(data.train).includes(path))
    if (shared !== undefined) {
      problem(['data', 'heldOut'], `${shared} is trained on too: held-out rows must be kept apart`)
    }
    if (
      !data.dataset &&
      data.heldOut === undefined &&
      (stage.evaluation.everySteps > 0 || ('earlyStopping' in stage && stage.earlyStopping))
    ) {
      problem(['stage', 'evaluation'], 'evaluations need held-out rows: name them in data.heldOut')
    }
    if (data.choices && !data.dataset && data.heldOut === undefined) {
      problem(['data', 'choices'], 'choices judge held-out rows: name them in data.heldOut')
    }
    const isByChoice = stage.type === 'sft' && stage.evaluation.metric === 'eval/accuracy'
    if (isByChoice && !data.dataset && !data.choices) {
      problem(['stage', 'evaluation', 'metric'], 'eval/accuracy needs the possible answers: set data.choices')
    }
    const { targetModules, layersToTransform } = adapter
    if (layersToTransform && typeof targetModules === 'string' && targetModules !== ALL_LINEAR) {
      problem(
        ['adapter', 'layersToTransform'],
        'needs targetModules as a list of names: a regular expression can name the layers itself',
      )
    }
    if (adapter.layersPattern && !layersToTransform) {
      problem(
        ['adapter', 'layersPattern'],
        'says how layers are numbered for layersToTransform: set that, or remove it',
      )
    }
    if (runtime?.isa && runtime.provider !== undefined && runtime.provider !== 'cpu') {
      problem(['runtime', 'isa'], `names CPU instructions and the provider is ${runtime.provider}: remove one of them`)
    }
  })

/** What `defineRecipe` takes: everything that has a default may be left out. */
export type RecipeInput = z.input<typeof recipeSchema>
/** A recipe after validation, defaults filled in. */
export type ResolvedRecipe = z.output<typeof recipeSchema>
