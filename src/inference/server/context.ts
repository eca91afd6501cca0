// What the routes of one server share.
import type { LanguageModel } from '../language-model.js'
import { ApiError } from './errors.js'
import type { KeyCheck } from './keys.js'
import type { Admission, ServerLimits } from './limits.js'
import type { ServerMetrics } from './metrics.js'

/** What the server needs of a model. */
export type ServedModel = Pick<
  LanguageModel,
  'name' | 'engine' | 'tokenizer' | 'template' | 'generateEach' | 'loadAdapter' | 'unloadAdapter'
>

export interface ServerContext {
  readonly model: ServedModel
  /** The name of the base in requests and answers. */
  readonly name: string
  readonly limits: ServerLimits
  readonly admission: Admission
  readonly metrics: ServerMetrics
  readonly checkKey: KeyCheck
  /** Where adapters may be loaded from; null: they may not. */
  readonly adapterFolder: string | null
  /** Seconds since 1970 at the start. */
  readonly created: number
  isDraining: boolean
  /** Requests whose answer is not yet on its way as a whole. */
  unanswered: number
  /** Aborts the requests that are being answered. */
  readonly active: Set<AbortController>
}

/** The adapter that a model name means; null: the base. @throws ApiError 404 */
export function adapterOf(context: ServerContext, model: string): string | null {
  if (model === context.name) return null
  if (context.model.engine.adapters().includes(model)) return model
  throw new ApiError(404, `there is no model ${JSON.stringify(model)} here; GET /v1/models lists them`, {
    param: 'model',
    code: 'model_not_found',
  })
}
