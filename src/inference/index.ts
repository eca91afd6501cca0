// Scoring and generation, as the SDK offers them.
export { type FinishReason, type GeneratedToken, type GenerateOptions, generateTokens, topTokens } from './generate.js'
export { type Generation, LanguageModel, type OpenModelOptions, openModel } from './language-model.js'
export { type ScoredRow, scoreRow, type TokenRow } from './score.js'
export { InferenceSession, type LoadedAdapter, packSequences, type Sequences, type SessionOptions } from './session.js'
