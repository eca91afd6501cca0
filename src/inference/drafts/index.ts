// The draft sources: by name those that need nothing but the engine, and the smaller model.
import { createEarlyExit } from './early-exit.js'
import { createPromptLookup } from './prompt-lookup.js'
import type { DraftHost, DraftSource } from './source.js'

export { createDraftModel, type DraftModelOptions } from './draft-model.js'
export type { ComputedSource, Draft, DraftHost, DraftRequest, DraftSource, FreeSource } from './source.js'

export const draftSources = {
  'prompt-lookup': createPromptLookup,
  'early-exit': createEarlyExit,
} satisfies Record<string, (host: DraftHost) => DraftSource | Promise<DraftSource>>

export type DraftSourceName = keyof typeof draftSources
