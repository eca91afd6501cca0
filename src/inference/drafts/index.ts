// The draft sources by name.
import { createPromptLookup } from './prompt-lookup.js'
import type { DraftSource } from './source.js'

export type { Draft, DraftRequest, DraftSource } from './source.js'

export const draftSources = {
  'prompt-lookup': createPromptLookup,
} satisfies Record<string, () => DraftSource | Promise<DraftSource>>

export type DraftSourceName = keyof typeof draftSources
