// The architectures, by Hugging Face's model_type. One line each.
import type { Architecture } from './architecture.js'
import { llama } from './llama.js'
import { mistral } from './mistral.js'
import { qwen2 } from './qwen2.js'
import { qwen3 } from './qwen3.js'

export const architectures: Readonly<Record<string, Architecture>> = {
  llama,
  mistral,
  qwen2,
  qwen3,
}

/** @throws Error naming the supported types */
export function architectureOf(modelType: string): Architecture {
  const found = Object.hasOwn(architectures, modelType) ? architectures[modelType] : undefined
  if (!found)
    throw new Error(`model type ${modelType} is not supported; supported: ${Object.keys(architectures).join(', ')}`)
  return found
}
