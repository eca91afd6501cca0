// tokenizer.json and tokenizer_config.json from the vocabulary, merges and token types inside a GGUF file. What the file
// cannot say, how text is split before BPE, follows from `tokenizer.ggml.pre` (llama.cpp src/llama-vocab.cpp); a name that
// is not known here is refused, because another split gives other ids.

import type { GgufFile } from './gguf.js'
import { GgufFields } from './gguf-config.js'

type Json = Record<string, unknown>

export interface TokenizerFiles {
  tokenizer: Json
  tokenizerConfig: Json
}

/** Token types of the format (llama.h, llama_token_type). */
const UNKNOWN = 2
const CONTROL = 3
const USER_DEFINED = 4

const byteLevel = (useRegex: boolean): Json => ({
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: useRegex,
})
const split = (regex: string): Json => ({
  type: 'Split',
  pattern: { Regex: regex },
  behavior: 'Isolated',
  invert: false,
})
const sequence = (...pretokenizers: Json[]): Json => ({ type: 'Sequence', pretokenizers })

const words = (numbers: string) =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${numbers}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`

interface PreTokenizer {
  preTokenizer: Json
  normalizer: Json | null
  /** Whole words in the vocabulary are taken before merges are tried. */
  ignoreMerges: boolean
}

const gpt2: PreTokenizer = { preTokenizer: byteLevel(true), normalizer: null, ignoreMerges: false }
const digits: PreTokenizer = { ...gpt2, preTokenizer: sequence(split('\\p{N}'), byteLevel(true)) }
const llama3: PreTokenizer = {
  preTokenizer: sequence(split(words('\\p{N}{1,3}')), byteLevel(false)),
  normalizer: null,
  ignoreMerges: true,
}
const qwen2: PreTokenizer = {
  preTokenizer: sequence(split(words('\\p{N}')), byteLevel(false)),
  normalizer: { type: 'NFC' },
  ignoreMerges: false,
}

/** By the value of `tokenizer.ggml.pre`. */
const preTokenizers: Record<string, PreTokenizer> = {
  default: gpt2,
  'gpt-2': gpt2,
  smollm: digits,
  'llama-bpe': llama3,
  'llama-v3': llama3,
  llama3,
  qwen2,
}

interface Vocabulary {
  tokens: string[]
  types: number[]
  fields: GgufFields
}

/** Merges of a byte-level vocabulary, as pairs: either side may hold no space. */
function mergesOf({ fields }: Vocabulary): [string, string][] {
  const key = 'tokenizer.ggml.merges'
  const merges = fields.strings(key)
  if (!merges) throw fields.fail(key, 'missing')
  return merges.map((merge, i) => {
    const at = merge.indexOf(' ', 1)
    if (at < 0) throw fields.fail(key, `entry ${i}, ${JSON.stringify(merge)}, is no pair`)
    return [merge.slice(0, at), merge.slice(at + 1)]
  })
}

/** Merges of a SentencePiece vocabulary from its scores, best first (transformers `generate_merges`). */
function mergesFromScores({ tokens, types, fields }: Vocabulary): [string, string][] {
  const key = 'tokenizer.ggml.scores'
  const scores = fields.numbers(key)
  if (!scores || scores.length !== tokens.length) throw fields.fail(key, `${tokens.length} numbers are expected`)
  const ids = new Map(tokens.map((token, id) => [token, id]))
  const found: { left: string; right: string; score: number; ids: [number, number] }[] = []
  tokens.forEach((token, id) => {
    if (types[id] !== 1) return
    for (let at = 1; at < token.length; at++) {
      const left = ids.get(token.slice(0, at))
      const right = ids.get(token.slice(at))
      if (left === undefined || right === undefined) continue
      found.push({ left: token.slice(0, at), right: token.slice(at), score: scores[id]!, ids: [left, right] })
    }
  })
  found.sort((a, b) => b.score - a.score || a.ids[0] - b.ids[0] || a.ids[1] - b.ids[1])
  return found.map(({ left, right }) => [left, right])
}

function byteLevelModel(vocabulary: Vocabulary): Json {
  const { fields } = vocabulary
  const key = 'tokenizer.ggml.pre'
  const pre = fields.text(key) ?? 'default'
  const rules = Object.hasOwn(preTokenizers, pre) ? preTokenizers[pre] : undefined
  if (!rules) {
    throw fields.fail(
      key,
      `${JSON.stringify(pre)} is not known (there are: ${Object.keys(preTokenizers).join(', ')}); import the Hugging Face folder instead`,
    )
  }
  return {
    normalizer: rules.normalizer,
    pre_tokenizer: rules.preTokenizer,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: bpe(vocabulary, mergesOf(vocabulary), { ignore_merges: rules.ignoreMerges }),
  }
}

/** SentencePiece BPE as transformers converts it: a prefix space, spaces as ▁, unknown bytes as <0xNN>. */
function sentencePieceModel(vocabulary: Vocabulary): Json {
  const { fields, tokens } = vocabulary
  const hasPrefix = fields.boolean('tokenizer.ggml.add_space_prefix') ?? true
  const replace = (from: string, to: string) => ({ type: 'Replace', pattern: { String: from }, content: to })
  const unknown = fields.number('tokenizer.ggml.unknown_token_id')
  return {
    normalizer: {
      type: 'Sequence',
      normalizers: [...(hasPrefix ? [{ type: 'Prepend', prepend: '▁' }] : []), replace(' ', '▁')],
    },
    pre_tokenizer: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        replace('▁', ' '),
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(hasPrefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: bpe(vocabulary, mergesFromScores(vocabulary), {
      unk_token: unknown === null ? null : (tokens[unknown] ?? null),
      fuse_unk: true,
      byte_fallback: true,
    }),
  }
}

function bpe({ tokens }: Vocabulary, merges: [string, string][], options: Json): Json {
  return {
    type: 'BPE',
    dropout: null,
    unk_token: null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    ignore_merges: false,
    ...options,
    vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
    merges,
  }
}

/** By the value of `tokenizer.ggml.model`. */
const models: Record<string, (vocabulary: Vocabulary) => Json> = { gpt2: byteLevelModel, llama: sentencePieceModel }

function readVocabulary(file: GgufFile): Vocabulary {
  const fields = new GgufFields(file)
  const key = 'tokenizer.ggml.tokens'
  const tokens = fields.strings(key)
  if (!tokens || tokens.length === 0) throw fields.fail(key, 'missing')
  if (new Set(tokens).size !== tokens.length) throw fields.fail(key, 'a token occurs twice')
  const types = fields.numbers('tokenizer.ggml.token_type') ?? tokens.map(() => 1)
  if (types.length !== tokens.length) {
    throw fields.fail('tokenizer.ggml.token_type', `${types.length} types for ${tokens.length} tokens`)
  }
  return { tokens, types, fields }
}

/** Puts the begin-of-text token before every sequence, where the file asks for it. */
function postProcessor(bos: string | null, bosId: number | null): Json | null {
  if (bos === null) return null
  const special = { SpecialToken: { id: bos, type_id: 0 } }
  const text = (id: string, type: number) => ({ Sequence: { id, type_id: type } })
  return {
    type: 'TemplateProcessing',
    single: [special, text('A', 0)],
    pair: [special, text('A', 0), special, text('B', 1)],
    special_tokens: { [bos]: { id: bos, ids: [bosId], tokens: [bos] } },
  }
}

/** Builds the tokenizer files of a GGUF file. Throws FormatError naming the metadata key. */
export function readGgufTokenizer(file: GgufFile): TokenizerFiles {
  const vocabulary = readVocabulary(file)
  const { tokens, types, fields } = vocabulary
  const modelKey = 'tokenizer.ggml.model'
  const modelName = fields.text(modelKey)
  const model = modelName !== null && Object.hasOwn(models, modelName) ? models[modelName] : undefined
  if (!model) {
    throw fields.fail(
      modelKey,
      `${JSON.stringify(modelName)} is not known (there are: ${Object.keys(models).join(', ')})`,
    )
  }
  const tokenOf = (key: string): string | null => {
    const id = fields.number(`tokenizer.ggml.${key}`)
    if (id === null) return null
    const token = tokens[id]
    if (token === undefined) throw fields.fail(`tokenizer.ggml.${key}`, `${id} is not in the vocabulary`)
    return token
  }
  const bos = tokenOf('bos_token_id')
  // llama.cpp adds it by default for SentencePiece vocabularies only.
  const addsBos = fields.boolean('tokenizer.ggml.add_bos_token') ?? modelName === 'llama'
  const added = tokens.flatMap((content, id) => {
    const type = types[id]!
    if (type !== CONTROL && type !== USER_DEFINED && type !== UNKNOWN) return []
    const special = type !== USER_DEFINED
    return [{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special }]
  })
  const template = fields.text('tokenizer.chat_template')
  const context = fields.number(`${fields.text('general.architecture')}.context_length`)
  return {
    tokenizer: {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: added,
      post_processor: addsBos ? postProcessor(bos, fields.number('tokenizer.ggml.bos_token_id')) : null,
      ...model(vocabulary),
    },
    tokenizerConfig: {
      tokenizer_class: 'PreTrainedTokenizerFast',
      add_bos_token: addsBos,
      bos_token: bos,
      eos_token: tokenOf('eos_token_id'),
      unk_token: tokenOf('unknown_token_id'),
      pad_token: tokenOf('padding_token_id'),
      ...(context === null ? {} : { model_max_length: context }),
      clean_up_tokenization_spaces: false,
      ...(template === null ? {} : { chat_template: template }),
    },
  }
}
