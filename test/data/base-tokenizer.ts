// The real base's tokenizer for tests, from the metadata of its GGUF file (vocabulary, merges, token types, chat template).
// The tokenizer.json made here follows the README of the reference values; the importer has its own code for it.
import { closeSync, existsSync, openSync, readSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { createTokenizer, type Tokenizer } from '../../src/data/tokenizer.js'

const fileName = 'SmolLM2-135M-Instruct.Q4_1.gguf'

/** Where the base's GGUF is, if it has been fetched. */
export function findBase(): string | undefined {
  const cache = process.env.ESPALIER_CACHE ?? join(homedir(), '.cache', 'espalier')
  // Where src/models/fetch.ts puts it: named by the first digits of its SHA-256.
  const candidates = [process.env.ESPALIER_BASE_GGUF ?? '', join(cache, 'sources', `b179c9523d0e6a0f-${fileName}`)]
  return candidates.find((path) => path !== '' && existsSync(path))
}

/** The metadata of a GGUF file (github.com/ggml-org/ggml/blob/master/docs/gguf.md), read plainly. */
function readMetadata(path: string): Map<string, unknown> {
  const head = Buffer.alloc(8 << 20)
  const file = openSync(path, 'r')
  readSync(file, head, 0, head.length, 0)
  closeSync(file)
  let at = 24
  const next = (bytes: number): number => {
    at += bytes
    return at - bytes
  }
  const long = (): number => Number(head.readBigUInt64LE(next(8)))
  const text = (): string => {
    const start = next(long())
    return head.toString('utf8', start, at)
  }
  const readers: (() => unknown)[] = [
    () => head.readUInt8(next(1)),
    () => head.readInt8(next(1)),
    () => head.readUInt16LE(next(2)),
    () => head.readInt16LE(next(2)),
    () => head.readUInt32LE(next(4)),
    () => head.readInt32LE(next(4)),
    () => head.readFloatLE(next(4)),
    () => head.readUInt8(next(1)) !== 0,
    text,
    () => {
      const read = readers[head.readUInt32LE(next(4))]!
      return Array.from({ length: long() }, () => read())
    },
    long,
    () => Number(head.readBigInt64LE(next(8))),
    () => head.readDoubleLE(next(8)),
  ]
  const metadata = new Map<string, unknown>()
  for (let count = Number(head.readBigUInt64LE(16)); count > 0; count--) {
    const key = text()
    metadata.set(key, readers[head.readUInt32LE(next(4))]!())
  }
  return metadata
}

export function baseTokenizerFiles(path: string): { json: object; config: object } {
  const metadata = readMetadata(path)
  const read = <T>(key: string): T => metadata.get(key) as T
  const tokens = read<string[]>('tokenizer.ggml.tokens')
  const types = read<number[]>('tokenizer.ggml.token_type')
  const added = tokens.flatMap((content, id) =>
    types[id] === 3 || types[id] === 4
      ? [{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: types[id] === 3 }]
      : [],
  )
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }
  return {
    json: {
      version: '1.0',
      added_tokens: added,
      normalizer: null,
      pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Digits', individual_digits: true }, byteLevel] },
      post_processor: null,
      decoder: byteLevel,
      model: {
        type: 'BPE',
        unk_token: null,
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
        merges: read<string[]>('tokenizer.ggml.merges'),
      },
    },
    config: {
      bos_token: tokens[read<number>('tokenizer.ggml.bos_token_id')],
      eos_token: tokens[read<number>('tokenizer.ggml.eos_token_id')],
      add_bos_token: false,
      chat_template: read<string>('tokenizer.chat_template'),
    },
  }
}

let shared: Tokenizer | undefined

/** The base's tokenizer; undefined (or an error under ESPALIER_REQUIRE_BASE) where the base is not here. */
export function baseTokenizer(): Tokenizer | undefined {
  if (shared) return shared
  const path = findBase()
  if (path === undefined) {
    if (process.env.ESPALIER_REQUIRE_BASE)
      throw new Error(`the base ${fileName} is not in the cache; run npm run fetch-base`)
    console.warn(`SKIPPED: the base ${fileName} is not in the cache`)
    return undefined
  }
  const { json, config } = baseTokenizerFiles(path)
  shared = createTokenizer(json, config)
  return shared
}
