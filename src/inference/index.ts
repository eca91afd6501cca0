// Scoring, embedding and generation, as the SDK offers them.
export type { SharedArena } from './adapters.js'
export { createConstraint, type ResponseFormat } from './constraint.js'
export {
  createDraftModel,
  type Draft,
  type DraftModelOptions,
  type DraftRequest,
  type DraftSource,
  type DraftSourceName,
} from './drafts/index.js'
export { Engine, type EngineOptions } from './engine.js'
export { generateTokens, topTokens } from './generate.js'
export {
  type IndexedGeneration,
  LanguageModel,
  type LanguageModelParts,
  type ManyOptions,
  type OpenModelOptions,
  openModel,
  type Prompt,
  type RowOptions,
  type TextOptions,
} from './language-model.js'
export type {
  EngineRequest,
  EngineStatistics,
  FinishReason,
  GeneratedToken,
  SamplingOptions,
  TextEngine,
  TokenChoice,
  TokenConstraint,
  TokenStream,
} from './request.js'
export { RequestError } from './sampling.js'
export { type ScoredRow, scoreRow, scoreRows, type TokenRow } from './score.js'
export { InferenceSession, type LoadedAdapter, packSequences, type Sequences, type SessionOptions } from './session.js'
export type { Generation, GenerationStream, TextChunk } from './text.js'
