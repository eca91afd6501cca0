// What the bodies of requests look like: as strict as OpenAI where OpenAI is. Fields that OpenAI has and that change nothing
// here are taken and left alone; those that would change the answer and are not supported are refused by name.
import { z } from 'zod'
import { nearest } from '../../data/errors.js'
import { badRequest } from './errors.js'

const maxStops = 4
const maxStopCharacters = 1024
const maxBias = 100
export const maxTopLogprobs = 20
/** Deeper values would be walked by recursive code: templates, grammars. */
const maxDepth = 32

/** null means absent, as in OpenAI's own schema. */
export const maybe = <T extends z.ZodType>(schema: T) => schema.nullish()

/** A field of OpenAI's that is not supported; only null is taken, or what changes nothing. */
export const refused = (why: string, isHarmless: (value: unknown) => boolean = () => false) =>
  z
    .unknown()
    .refine((value) => value === undefined || value === null || isHarmless(value), { error: why })
    .optional()

const depthOf = (value: unknown, limit: number): number => {
  if (typeof value !== 'object' || value === null || limit === 0) return 0
  return 1 + Object.values(value).reduce((deepest, part) => Math.max(deepest, depthOf(part, limit - 1)), 0)
}

/** An object of JSON, not too deep. */
export const jsonObject = z
  .record(z.string(), z.unknown())
  .refine((value) => depthOf(value, maxDepth + 1) <= maxDepth, { error: `must not be nested deeper than ${maxDepth}` })

export const streamOptions = z.strictObject({
  include_usage: maybe(z.boolean()),
  include_obfuscation: maybe(z.boolean()),
})

/** The fields of both kinds of completions. */
export const samplingFields = {
  model: z.string().min(1).max(256),
  stream: maybe(z.boolean()),
  stream_options: maybe(streamOptions),
  n: maybe(z.int().min(1)),
  seed: maybe(z.int()),
  max_tokens: maybe(z.int().min(1)),
  temperature: maybe(z.number().min(0).max(2)),
  top_p: maybe(z.number().min(0).max(1)),
  frequency_penalty: maybe(z.number().min(-2).max(2)),
  presence_penalty: maybe(z.number().min(-2).max(2)),
  logit_bias: maybe(
    z.record(z.string().regex(/^\d{1,9}$/, 'must be a token id'), z.number().min(-maxBias).max(maxBias)),
  ),
  stop: maybe(
    z.union([
      z.string().min(1).max(maxStopCharacters),
      z.array(z.string().min(1).max(maxStopCharacters)).max(maxStops),
    ]),
  ),
  // Beyond OpenAI, with vLLM's names
  top_k: maybe(z.int().min(-1)),
  min_p: maybe(z.number().min(0).max(1)),
  repetition_penalty: maybe(z.number().gt(0).max(100)),
  // These change nothing here
  user: maybe(z.string()),
  metadata: maybe(z.record(z.string(), z.string())),
  service_tier: maybe(z.string()),
  safety_identifier: maybe(z.string()),
  prompt_cache_key: maybe(z.string()),
  prompt_cache_options: maybe(z.unknown()),
  prompt_cache_retention: maybe(z.string()),
}

/** Fields whose meaning hangs on another one. */
export const checkSampling = (body: { stream?: unknown; stream_options?: unknown }) => {
  if (body.stream_options && !body.stream)
    throw badRequest('stream_options is for streams: set stream to true or leave it out', 'stream_options')
}

const promptIds = z.array(z.int().min(0)).min(1)

export const completionSchema = z.strictObject({
  ...samplingFields,
  prompt: z.union([z.string(), z.array(z.string()).min(1), promptIds, z.array(promptIds).min(1)]),
  logprobs: maybe(z.int().min(0).max(maxTopLogprobs)),
  best_of: refused('best_of is not supported: ask for n and choose', (value) => value === 1),
  echo: refused('echo is not supported: the prompt is not repeated', (value) => value === false),
  suffix: refused('suffix is not supported: text is only continued', (value) => value === ''),
})

export type CompletionBody = z.infer<typeof completionSchema>

/** `messages[2].content` */
function nameOf(path: readonly PropertyKey[]): string {
  return path.reduce<string>(
    (name, part) =>
      typeof part === 'number' ? `${name}[${part}]` : name === '' ? String(part) : `${name}.${String(part)}`,
    '',
  )
}

interface Problem {
  readonly path: PropertyKey[]
  readonly message: string
}

/** The problem that lies deepest: of a union, that of the branch which came furthest. */
function deepest(issues: readonly z.core.$ZodIssue[], at: readonly PropertyKey[] = []): Problem {
  const problems = issues.map((issue): Problem => {
    const path = [...at, ...issue.path]
    if (issue.code === 'invalid_union' && issue.errors.length > 0) {
      const inner = issue.errors.map((branch) => deepest(branch, path))
      const best = inner.reduce((a, b) => (b.path.length > a.path.length ? b : a))
      if (best.path.length > path.length || inner.length === 1) return best
      return { path, message: [...new Set(inner.map(({ message }) => message))].join(', or: ') }
    }
    if (issue.code === 'unrecognized_keys') {
      const [key] = issue.keys
      return { path: [...path, key!], message: 'unrecognized request argument' }
    }
    if (issue.code === 'invalid_key') return { path, message: issue.issues[0]?.message ?? issue.message }
    return { path, message: issue.message }
  })
  return problems[0]!
}

/** A body as its schema says. @throws ApiError 400 naming the field */
export function parseBody<T extends z.ZodType>(schema: T, body: unknown): z.infer<T> {
  if (typeof body !== 'object' || body === null || Array.isArray(body))
    throw badRequest('the body must be a JSON object', null, 'invalid_json')
  const parsed = schema.safeParse(body)
  if (parsed.success) return parsed.data
  const { path, message } = deepest(parsed.error.issues)
  const name = nameOf(path)
  const known = schema instanceof z.ZodObject && path.length === 1 ? Object.keys(schema.shape) : []
  const meant = known.includes(name) ? undefined : nearest(name, known)
  const hint = meant ? `; did you mean ${JSON.stringify(meant)}?` : ''
  throw badRequest(name === '' ? message : `${name}: ${message}${hint}`, name || null, 'invalid_value')
}
