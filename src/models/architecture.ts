// What an architecture declares. One file per `model_type`, one line in index.ts.
import type { Value } from '../compiler/graph.js'
import type { ModelConfig } from './config.js'
import type { ModelContext } from './context.js'

export interface Architecture {
  /** Hugging Face's `model_type`. */
  readonly modelType: string
  /** Final hidden states [N, D] in the activation type. */
  build(ctx: ModelContext): Value
  /** Every linear that an adapter may target, with its sizes. */
  linears(config: ModelConfig): { path: string; outFeatures: number; inFeatures: number }[]
}

export function defineArchitecture(architecture: Architecture): Architecture {
  return architecture
}
