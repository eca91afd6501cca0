// What the data room offers to the other rooms and, through src/index.ts, to programs, recipes and datasets.
export { readFloatLists, writeFloatLists } from './arrow.js'
export {
  type ChatMessage,
  ChatTemplate,
  createChatTemplate,
  type MarkedText,
  type RenderOptions,
} from './chat-template.js'
export {
  type ComparedDocument,
  type Comparison,
  compareAnswers,
  encodeComparison,
  holdsPromptsOnly,
  readableText,
  readComparisons,
} from './comparisons.js'
export {
  type Dataset,
  type DatasetContext,
  type DatasetDefinition,
  type DatasetSplits,
  datasetBrand,
  datasetSource,
  defineDataset,
  isDataset,
  type SplitName,
} from './dataset.js'
export { DataError } from './errors.js'
export type { Format, PlacedRow } from './formats/format.js'
export { type FormatName, formatNames, formatOf, formats } from './formats/index.js'
export {
  alignLabels,
  encodeChoices,
  encodeQuestion,
  type HeldOutChoices,
  type HeldOutDocument,
  type HeldOutGroup,
  type HeldOutQuestion,
  heldOutDocuments,
  heldOutGroups,
} from './held-out.js'
export {
  collate,
  type LengthCurriculum,
  type LoadedBatch,
  type LoadedStep,
  Loader,
  type LoaderOptions,
  type LoaderState,
} from './loader.js'
export { checkMask, type MarkedRun, markedRuns, showMarked } from './mask-checks.js'
export type { AnsweredRow, Metric } from './metric.js'
export { clusterNearDuplicates, removeNearDuplicates } from './near-duplicates.js'
export { packBestFit } from './packing.js'
export { type DataReport, type PreparedTokens, type PrepareOptions, prepareStore, prepareTokens } from './prepare.js'
export { type PreviewRow, type PreviewToken, previewRows } from './preview.js'
export {
  type EncodedPrompt,
  PromptLoader,
  type PromptLoaderOptions,
  type PromptSet,
  type ReadPromptsOptions,
  readPrompts,
} from './prompt-loader.js'
export { type LengthQuantiles, lengthQuantiles } from './quantiles.js'
export { CounterRandom, permutation, philox } from './random.js'
export { type EncodeOptions, RowEncoder, type RowOutcome, type Truncation, truncations } from './row-encoder.js'
export { type FileSourceOptions, fileSource, iterableSource, type RowSource } from './row-source.js'
export { detectRowType, type RowTypeName, rowTypeNames, rowTypes } from './row-types/index.js'
export type { Side } from './row-types/preference.js'
export { type EncodeContext, type EncodedRow, ignoreIndex, type Row, type RowType } from './row-types/row-type.js'
export { openTokenStore, TokenStore } from './token-store.js'
export { createTokenizer, type DecodeStream, loadTokenizer, type MarkedIds, type Span, Tokenizer } from './tokenizer.js'
