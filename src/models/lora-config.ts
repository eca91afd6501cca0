// What a LoRA adapter is, with the names used here, and its exchange form: PEFT's adapter_config.json, every field of it
// (peft src/peft/tuners/lora/config.py). A setting that would change the adapter and that is not applied here is refused.
import { z } from 'zod'
import { FormatError } from './format-error.js'

export interface LoraConfig {
  rank: number
  alpha: number
  dropout: number
  /** Names of linears (a whole path, or its last parts), a regular expression for whole paths, or `all-linear`. */
  targetModules: string[] | string
  excludeModules: string[] | string | null
  layersToTransform: number[] | null
  layersPattern: string[] | null
  /** Rank and alpha of paths that match `^(.*\.)?(KEY)$`; the first key that matches counts. */
  rankPattern: Record<string, number>
  alphaPattern: Record<string, number>
  /** Scaling alpha / √rank in place of alpha / rank (arXiv:2312.03732). */
  useRslora: boolean
  /** A magnitude per output on top of the direction (arXiv:2402.09353). */
  useDora: boolean
  /** A: uniform in ±1/√in, or normal with deviation 1/rank; B is zero. */
  initLoraWeights: boolean | 'gaussian'
}

export const ALL_LINEAR = 'all-linear'

/** The version whose files we write. */
export const PEFT_VERSION = '0.21.2'

export const loraDefaults: LoraConfig = {
  rank: 8,
  alpha: 8,
  dropout: 0,
  targetModules: ALL_LINEAR,
  excludeModules: null,
  layersToTransform: null,
  layersPattern: null,
  rankPattern: {},
  alphaPattern: {},
  useRslora: false,
  useDora: false,
  initLoraWeights: true,
}

const names = z.union([z.string(), z.array(z.string())])
const rank = z.number().int().positive()

/** The fields that we apply; the rest is checked by `refuseUnsupported`. */
const peftSchema = z.looseObject({
  peft_type: z.literal('LORA'),
  base_model_name_or_path: z.string().nullish(),
  task_type: z.string().nullish(),
  r: rank.default(8),
  lora_alpha: z.number().default(8),
  lora_dropout: z.number().min(0).max(1).default(0),
  target_modules: names,
  exclude_modules: names.nullish(),
  layers_to_transform: z.union([z.number().int(), z.array(z.number().int())]).nullish(),
  layers_pattern: names.nullish(),
  rank_pattern: z.record(z.string(), rank).nullish(),
  alpha_pattern: z.record(z.string(), z.number()).nullish(),
  use_rslora: z.boolean().nullish(),
  use_dora: z.boolean().nullish(),
  init_lora_weights: z.unknown().optional(),
  modules_to_save: z.array(z.string()).nullish(),
})

/** PEFT's defaults of the fields that we do not apply, and so the only values that may be there. */
const unapplied: Record<string, unknown> = {
  alora_invocation_tokens: null,
  arrow_config: null,
  auto_mapping: null,
  bias: 'none',
  corda_config: null,
  ensure_weight_tying: false,
  eva_config: null,
  fan_in_fan_out: false,
  kasa_config: null,
  layer_replication: null,
  loftq_config: {},
  lora_bias: false,
  lora_ga_config: null,
  megatron_config: null,
  megatron_core: 'megatron.core',
  monteclora_config: null,
  qalora_group_size: 16,
  revision: null,
  target_parameters: null,
  trainable_token_indices: null,
  use_bdlora: null,
  use_qalora: false,
  velora_config: null,
}

/** Unapplied fields that say how an adapter was made or is found, not what it computes. */
const harmless = new Set([
  'arrow_config',
  'auto_mapping',
  'corda_config',
  'ensure_weight_tying',
  'eva_config',
  'loftq_config',
  'lora_ga_config',
  'megatron_core',
  'qalora_group_size',
  'revision',
])

const isEmpty = (value: unknown): boolean =>
  value === null ||
  value === undefined ||
  value === false ||
  (typeof value === 'object' && Object.keys(value as object).length === 0)

/** The names under which PEFT keeps the head of a sequence classifier. */
const scoreModules = ['classifier', 'score']

function refuseUnsupported(raw: Record<string, unknown>, file: string): void {
  const saved = Array.isArray(raw.modules_to_save) ? raw.modules_to_save : []
  const other = saved.filter((name) => !scoreModules.includes(name))
  if (other.length > 0) throw new FormatError(file, 'modules_to_save', `${other.join(', ')}: only score is supported`)
  for (const [key, plain] of Object.entries(unapplied)) {
    if (harmless.has(key) || !(key in raw) || raw[key] === plain) continue
    if (isEmpty(raw[key]) && isEmpty(plain)) continue
    throw new FormatError(file, key, `${JSON.stringify(raw[key])} is not supported`)
  }
}

export interface PeftConfig {
  lora: LoraConfig
  /** `base_model_name_or_path`: what the adapter was trained on. */
  baseModel: string | null
  taskType: string | null
  /** The adapter has a scalar head: a reward or value model. */
  hasScore: boolean
}

const list = (value: string | string[] | null | undefined): string[] | null =>
  value == null ? null : typeof value === 'string' ? [value] : value

/** Reads adapter_config.json. Throws FormatError. */
export function parsePeftConfig(raw: Record<string, unknown>, file: string): PeftConfig {
  if (raw.peft_type !== undefined && raw.peft_type !== 'LORA') {
    throw new FormatError(file, 'peft_type', `${JSON.stringify(raw.peft_type)} is not supported, only "LORA" is`)
  }
  const parsed = peftSchema.safeParse(raw)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!
    throw new FormatError(file, issue.path.join('.') || 'top level', issue.message)
  }
  refuseUnsupported(raw, file)
  const config = parsed.data
  const layers = config.layers_to_transform
  const lora: LoraConfig = {
    rank: config.r,
    alpha: config.lora_alpha,
    dropout: config.lora_dropout,
    targetModules: config.target_modules,
    excludeModules: config.exclude_modules ?? null,
    layersToTransform: layers == null ? null : typeof layers === 'number' ? [layers] : layers,
    layersPattern: list(config.layers_pattern),
    rankPattern: config.rank_pattern ?? {},
    alphaPattern: config.alpha_pattern ?? {},
    useRslora: config.use_rslora ?? false,
    useDora: config.use_dora ?? false,
    initLoraWeights: config.init_lora_weights === 'gaussian' ? 'gaussian' : true,
  }
  const hasScore = config.modules_to_save?.includes('score') ?? false
  return { lora, baseModel: config.base_model_name_or_path ?? null, taskType: config.task_type ?? null, hasScore }
}

/** Python's dump of a JSON value with two spaces; `isFloat` numbers keep their point. */
function dump(value: unknown, indent: string, isFloat: boolean): string {
  const inner = `${indent}  `
  if (typeof value === 'number') return isFloat && Number.isInteger(value) ? value.toFixed(1) : String(value)
  if (Array.isArray(value)) {
    if (value.length === 0) return '[]'
    return `[\n${value.map((item) => inner + dump(item, inner, isFloat)).join(',\n')}\n${indent}]`
  }
  if (typeof value === 'object' && value !== null) {
    const keys = Object.keys(value).sort()
    if (keys.length === 0) return '{}'
    const field = (key: string) => {
      const item = (value as Record<string, unknown>)[key]
      return `${inner}${JSON.stringify(key)}: ${dump(item, inner, key === 'lora_dropout')}`
    }
    return `{\n${keys.map(field).join(',\n')}\n${indent}}`
  }
  return JSON.stringify(value)
}

/** The text of adapter_config.json as PEFT saves it: all fields, sorted. */
export function formatPeftConfig({ lora, baseModel, taskType, hasScore }: PeftConfig): string {
  const sorted = (value: string[] | string | null) => (Array.isArray(value) ? [...value].sort() : value)
  return dump(
    {
      ...unapplied,
      base_model_name_or_path: baseModel,
      exclude_modules: sorted(lora.excludeModules),
      inference_mode: true,
      init_lora_weights: lora.initLoraWeights,
      layers_pattern: lora.layersPattern,
      layers_to_transform: lora.layersToTransform,
      lora_alpha: lora.alpha,
      lora_dropout: lora.dropout,
      modules_to_save: hasScore ? scoreModules : null,
      peft_type: 'LORA',
      peft_version: PEFT_VERSION,
      r: lora.rank,
      alpha_pattern: lora.alphaPattern,
      rank_pattern: lora.rankPattern,
      target_modules: sorted(lora.targetModules),
      task_type: taskType,
      use_dora: lora.useDora,
      use_rslora: lora.useRslora,
    },
    '',
    false,
  )
}
