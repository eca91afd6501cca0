// The draft sources by name.
import { createEarlyExit } from './early-exit.js'
import { createPromptLookup } from './prompt-lookup.js'
import type { DraftHost, DraftSource } from './source.js'

export type { ComputedSource, Draft, DraftHost, DraftRequest, DraftSource, FreeSource } from './source.js'

export const draftSources = {
  'prompt-lookup': createPromptLookup,
  'early-exit': createEarlyExit,
} satisfies Record<string, (host: DraftHost) => DraftSource | Promise<DraftSource>>

export type DraftSourceName = keyof typeof draftSources
