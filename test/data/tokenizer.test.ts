// The short way through the tokenizer against the library's own, token boundaries against spans, and streams.
import { Tokenizer as LibraryTokenizer } from '@huggingface/tokenizers'
import { describe, expect, it } from 'vitest'
import { PieceCache } from '../../src/data/piece-cache.js'
import { CounterRandom } from '../../src/data/random.js'
import { createTokenizer, type Span } from '../../src/data/tokenizer.js'
import { baseTokenizer } from './base-tokenizer.js'
import { toyTokenizer, toyTokenizerJson } from './toy.js'

const library = LibraryTokenizer as unknown as new (
  json: object,
  config: object,
) => { encode(text: string): { ids: number[] } }
const alphabet = [
  'a',
  'B',
  'he',
  'llo',
  ' ',
  '  ',
  '\n',
  '\r\n',
  '\t',
  '0',
  '7',
  '½',
  '٣',
  'Ⅷ',
  'é',
  '東',
  '😀',
  "'s",
  '.',
  '==',
  '<|im_end|>',
  '\u00a0',
  '',
]

function randomText(random: CounterRandom, length: number): string {
  return Array.from({ length }, () => alphabet[random.nextInt(alphabet.length)]!).join('')
}

/** The same steps as a tokenizer.json that the library follows as it stands. */
function withSplitStep(json: { [key: string]: unknown }): object {
  const split = { type: 'Split', pattern: { Regex: '\\p{N}' }, behavior: 'Isolated', invert: false }
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }
  return { ...json, pre_tokenizer: { type: 'Sequence', pretokenizers: [split, byteLevel] } }
}

it('gives the ids of the library on random texts', () => {
  const merges = ['h e', 'l l', 'he ll', 'hell o', 'Ġ he', 'Ċ Ċ', 'Ġ Ġ']
  const reference = new library(withSplitStep(toyTokenizerJson(merges)), {})
  const random = new CounterRandom(2, 'texts')
  // Digits (as in the files of the hub), an ordinary Split, GPT-2's expression alone, and Llama 3's expression without it.
  const llama3 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, use_regex: true }
  const plain = { type: 'ByteLevel', add_prefix_space: false, use_regex: false }
  const split = { type: 'Split', pattern: { Regex: llama3 }, behavior: 'Isolated', invert: false }
  const json = toyTokenizerJson(merges)
  const pairs: [object, { encode(text: string): { ids: number[] } }][] = [
    [json, reference],
    [withSplitStep(json), reference],
    [{ ...json, pre_tokenizer: byteLevel }, new library({ ...json, pre_tokenizer: byteLevel }, {})],
    ...[{ type: 'Sequence', pretokenizers: [split, plain] }].map(
      (pre): [object, { encode(text: string): { ids: number[] } }] => [
        { ...json, pre_tokenizer: pre },
        new library({ ...json, pre_tokenizer: pre }, {}),
      ],
    ),
    [
      { ...json, normalizer: { type: 'NFC' } },
      new library({ ...(withSplitStep(json) as object), normalizer: { type: 'NFC' } }, {}),
    ],
  ]
  for (const [i, [own, other]] of pairs.entries()) {
    const tokenizer = createTokenizer(own)
    expect(tokenizer.isByteLevel).toBe(true)
    for (let n = 0; n < 300; n++) {
      const text = randomText(random, 1 + random.nextInt(30))
      expect([...tokenizer.encode(text)], `${i} ${JSON.stringify(text)}`).toEqual(other.encode(text).ids)
    }
  }
})

it('marks every token that overlaps a span, and decodes to the text', () => {
  const random = new CounterRandom(3, 'spans')
  for (let n = 0; n < 500; n++) {
    const text = randomText(random, 1 + random.nextInt(30))
    const cuts = [random.nextInt(text.length + 1), random.nextInt(text.length + 1)].sort((a, b) => a - b)
    const span: Span = [cuts[0]!, cuts[1]!]
    const { ids, trained } = toyTokenizer.encodeMarked(text, [span])
    expect([...ids]).toEqual([...toyTokenizer.encode(text)])
    expect(toyTokenizer.decode(ids)).toBe(text)
    // From the bytes that each token stands for.
    const bytes: Span = [Buffer.byteLength(text.slice(0, span[0])), Buffer.byteLength(text.slice(0, span[1]))]
    let at = 0
    const expected = [...ids].map((id) => {
      const start = at
      at += toyTokenizer.tokenBytes(id).length
      return bytes[0] < bytes[1] && start < bytes[1] && at > bytes[0] ? 1 : 0
    })
    // A cut inside a surrogate pair has no byte position.
    if (/[\ud800-\udbff]$/.test(text.slice(0, span[0])) || /[\ud800-\udbff]$/.test(text.slice(0, span[1]))) continue
    expect([...trained], JSON.stringify([text, span])).toEqual(expected)
  }
})

it('streams text by whole characters and can leave special tokens out', () => {
  const ids = toyTokenizer.encode('é<|im_end|>😀')
  const stream = toyTokenizer.createDecodeStream({ skipSpecials: true })
  const pieces = [...ids].map((id) => stream.push(id))
  expect(pieces.filter(Boolean)).toEqual(['é', '😀'])
  expect(stream.end()).toBe('')
  expect(toyTokenizer.decode(ids, { skipSpecials: true })).toBe('é😀')
  const cut = toyTokenizer.createDecodeStream()
  expect(cut.push(ids[0]!) + cut.end()).toBe('\ufffd')
})

it('follows SentencePiece-like tokenizers through the library', () => {
  const pieces = [
    '<unk>',
    '<s>',
    '</s>',
    ...Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`),
    '▁',
    'h',
    'e',
    'l',
    'o',
    'w',
    'he',
    'll',
    '▁he',
  ]
  const json = {
    added_tokens: ['<unk>', '<s>', '</s>'].map((content, id) => ({ id, content, special: true })),
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    pre_tokenizer: null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [],
      special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
    },
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: {
      type: 'BPE',
      unk_token: '<unk>',
      byte_fallback: true,
      fuse_unk: true,
      vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
      merges: ['h e', 'l l', '▁ he'],
    },
  }
  const tokenizer = createTokenizer(json, { bos_token: '<s>', eos_token: '</s>' })
  expect(tokenizer.isByteLevel).toBe(false)
  expect(tokenizer.prefixIds).toEqual([1])
  const text = 'hello é wow'
  const { ids, trained } = tokenizer.encodeMarked(text, [[6, 7]])
  expect(tokenizer.decode(ids)).toBe(text)
  expect([...ids].filter((_, i) => trained[i]).map((id) => pieces[id])).toEqual(['<0xC3>', '<0xA9>'])
  const stream = tokenizer.createDecodeStream()
  expect([...ids].map((id) => stream.push(id)).join('') + stream.end()).toBe(text)
})

it('caches what fits and never gives another piece’s tokens', () => {
  const cache = new PieceCache()
  const random = new CounterRandom(9, 'cache')
  for (let n = 0; n < 200_000; n++) {
    const value = random.nextInt(100_000)
    const piece = ` w${value}`
    const entry = cache.find(piece)
    if (entry >= 0) expect(cache.ids[entry * cache.stride]).toBe(value)
    else cache.store(piece, [value, 0, piece.length])
  }
  cache.store('x'.repeat(25), [1, 0, 25])
  expect(cache.find('x'.repeat(25))).toBe(-1)
  expect(cache.find('')).toBe(-1)
})

it('says what is wrong with a tokenizer.json', () => {
  expect(() => createTokenizer([])).toThrow(/must hold an object/)
  expect(() => createTokenizer({})).toThrow(/no "model"/)
  const step = { type: 'Split', pattern: { String: ' ' }, behavior: 'MergedWithNext', invert: false }
  expect(() => createTokenizer({ ...toyTokenizerJson(), pre_tokenizer: step })).toThrow(
    /MergedWithNext is not supported/,
  )
})

const base = await baseTokenizer()
describe.skipIf(!base)('the real base', () => {
  it('has a hash, an end token and a template', () => {
    expect(base!.hash).toMatch(/^[0-9a-f]{64}$/)
    expect(base!.eosToken).toBe('<|im_end|>')
    expect(base!.prefixIds).toEqual([])
    expect(base!.chatTemplate).toContain('<|im_start|>')
    expect(base!.vocabSize).toBe(49152)
  })
})
