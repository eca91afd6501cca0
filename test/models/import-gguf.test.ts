// Import of GGUF files: row order, names, configuration, packed forms, and what is refused.
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { openBase, openWeights, rowNorms } from '../../src/models/base-directory.js'
import { float32ToHalf } from '../../src/models/float16.js'
import { llama3Factors } from '../../src/models/gguf-config.js'
import { importBase } from '../../src/models/import.js'
import { type TinyOptions, tiny, valuesOf, writeTinyGguf } from './tiny-gguf.js'
import { floats } from './write-gguf.js'

const dir = mkdtempSync(join(tmpdir(), 'espalier-gguf-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
let count = 0

async function importTiny(options: TinyOptions = {}, format: 'source' | 'int4' | 'nf4' | 'none' = 'none') {
  const source = join(dir, `${count}.gguf`)
  const out = join(dir, `base-${count++}`)
  writeTinyGguf(source, options)
  const result = await importBase({ source, out, format })
  return { result, base: openBase(out), out, source }
}

function rowsOf(base: ReturnType<typeof openBase>, name: string): Float32Array {
  const weights = openWeights(base)
  try {
    return weights.rows(name)
  } finally {
    weights.close()
  }
}

describe('import of a GGUF file', () => {
  it('undoes the row order of q and k, and only theirs', async () => {
    const { base } = await importTiny()
    const { hidden, headDim } = tiny
    for (const [name, rows, seed] of [
      ['q', 64, 2],
      ['k', 32, 3],
    ] as const) {
      const stored = valuesOf(rows, hidden, seed)
      const values = rowsOf(base, `model.layers.0.self_attn.${name}_proj.weight`)
      for (let head = 0; head < rows / headDim; head++) {
        for (let j = 0; j < 2; j++) {
          for (let i = 0; i < headDim / 2; i++) {
            const row = head * headDim + j * (headDim / 2) + i
            const from = (head * headDim + 2 * i + j) * hidden
            expect([...values.subarray(row * hidden, (row + 1) * hidden)]).toEqual([
              ...stored.subarray(from, from + hidden),
            ])
          }
        }
      }
    }
    const v = rowsOf(base, 'model.layers.0.self_attn.v_proj.weight')
    expect([...v]).toEqual([...valuesOf(32, hidden, 4)])
  })

  it('reads the configuration', async () => {
    const { base } = await importTiny()
    expect(base.config).toMatchObject({ modelType: 'llama', headDim: 16, ropeTheta: 500000, rmsNormEps: 1e-5 })
    expect(base.config.tieWordEmbeddings).toBe(true)
    expect(base.rawConfig.rope_scaling).toBeNull()
  })

  it('keeps rows where the architecture rotates halves, and reads biases', async () => {
    const bias = (length: number) => ({ dims: [length], type: 0, bytes: floats(valuesOf(1, length, 9)) })
    const { base } = await importTiny({
      arch: 'qwen2',
      tensors: { 'blk.0.attn_q.bias': bias(64), 'blk.0.attn_k.bias': bias(32), 'blk.0.attn_v.bias': bias(32) },
    })
    expect(base.config.modelType).toBe('qwen2')
    const q = rowsOf(base, 'model.layers.0.self_attn.q_proj.weight')
    expect([...q]).toEqual([...valuesOf(64, 64, 2)])
    expect([...rowsOf(base, 'model.layers.0.self_attn.k_proj.bias')]).toEqual([...valuesOf(1, 32, 9)])
  })

  it('recognises Llama 3 scaling from its factors and refuses others', async () => {
    const factors = llama3Factors(500000, 16, 8, 1, 4, 8192)
    const tensor = (values: number[]) => ({ dims: [values.length], type: 0, bytes: floats(values) })
    const { base } = await importTiny({ tensors: { 'rope_freqs.weight': tensor(factors) } })
    expect(base.config.ropeScaling).toMatchObject({ factor: 8, originalMaxPositionEmbeddings: 8192 })
    factors[3]! *= 1.5
    await expect(importTiny({ tensors: { 'rope_freqs.weight': tensor(factors) } })).rejects.toThrow(/rope_freqs/)
  })

  it('calls a llama with a window a Mistral', async () => {
    const { base } = await importTiny({ metadata: { 'llama.attention.sliding_window': { u32: 8 } } })
    expect(base.config).toMatchObject({ modelType: 'mistral', slidingWindow: 8 })
  })

  it('copies Q4_0 and Q8_0 and half precision without a change in value', async () => {
    const { hidden } = tiny
    const random = (length: number) => new Uint8Array(length).map((_, i) => (i * 37 + 11) & 255)
    const scaled = (blocks: number, blockBytes: number) => {
      const bytes = random(blocks * blockBytes)
      const halves = float32ToHalf(new Float32Array(blocks).map((_, b) => ((b % 7) + 1) * 0.003 * (b % 2 ? -1 : 1)))
      for (let b = 0; b < blocks; b++) bytes.set(new Uint8Array(halves.buffer, 2 * b, 2), b * blockBytes)
      return { bytes, halves }
    }
    const up = scaled((96 * hidden) / 32, 18)
    const embedding = scaled((tiny.vocab * hidden) / 32, 34)
    const gate = float32ToHalf(valuesOf(96, hidden, 6))
    const { base, result } = await importTiny(
      {
        tensors: {
          'blk.0.ffn_up.weight': { dims: [hidden, 96], type: 2, bytes: up.bytes },
          'token_embd.weight': { dims: [hidden, tiny.vocab], type: 8, bytes: embedding.bytes },
          'blk.0.ffn_gate.weight': { dims: [hidden, 96], type: 1, bytes: new Uint8Array(gate.buffer) },
        },
      },
      'source',
    )
    expect(base.formats.get('model.layers.0.mlp.up_proj.weight')).toMatchObject({ format: 'int4sym', block: 32 })
    expect(base.formats.get('model.embed_tokens.weight')).toMatchObject({ format: 'int8', block: 32 })
    expect(base.formats.get('model.layers.0.mlp.gate_proj.weight')).toMatchObject({ format: 'int4', block: 32 })
    expect(result.quantizationError['model.layers.0.mlp.gate_proj.weight']).toBeGreaterThan(0.01)
    expect(result.quantizationError['model.layers.0.mlp.up_proj.weight']).toBeUndefined()
    const values = rowsOf(base, 'model.layers.0.mlp.up_proj.weight')
    // Element j of a Q4_0 block is the low nibble of byte j, element j + 16 its high nibble.
    const scaleOf = (b: number) => new Float32Array([((b % 7) + 1) * 0.003 * (b % 2 ? -1 : 1)])
    for (let b = 0; b < 12; b++) {
      const half = values[b * 32]! / ((up.bytes[b * 18 + 2]! & 15) - 8)
      expect(Math.abs(half / scaleOf(b)[0]! - 1)).toBeLessThan(1e-3)
      for (let j = 0; j < 16; j++) {
        const byte = up.bytes[b * 18 + 2 + j]!
        expect(values[b * 32 + j]!).toBe(Math.fround(((byte & 15) - 8) * half))
        expect(values[b * 32 + 16 + j]!).toBe(Math.fround(((byte >> 4) - 8) * half))
      }
    }
  })

  it('quantizes to NF4, and keeps dense what does not fit, with a note', async () => {
    const { base, result } = await importTiny({}, 'nf4')
    expect(base.formats.get('model.layers.0.self_attn.q_proj.weight')).toMatchObject({ format: 'nf4', block: 64 })
    // down_proj has 96 columns
    expect(base.formats.get('model.layers.0.mlp.down_proj.weight')).toMatchObject({ format: 'f32', block: 1 })
    expect(result.notes).toEqual([expect.stringContaining('down_proj.weight: 96 columns')])
    const error = result.quantizationError['model.layers.0.self_attn.v_proj.weight']!
    const values = rowsOf(base, 'model.layers.0.self_attn.v_proj.weight')
    const original = valuesOf(32, 64, 4)
    const squares = original.reduce((sum, value) => sum + value * value, 0)
    const differences = original.reduce((sum, value, i) => sum + (value - values[i]!) ** 2, 0)
    expect(error).toBeCloseTo(Math.sqrt(differences / squares), 6)
    expect(base.manifest.quantizationError).toEqual(result.quantizationError)
  })

  it('gives the row norms of a weight', async () => {
    const { base } = await importTiny({}, 'int4')
    const name = 'model.layers.0.self_attn.v_proj.weight'
    const weights = openWeights(base)
    const norms = rowNorms(weights, base, name)
    const row = weights.rows(name, 5, 6)
    weights.close()
    expect(norms[5]).toBeCloseTo(Math.hypot(...row), 6)
  })

  it.each([
    ['an unknown architecture', { arch: 'gpt3' }, /general\.architecture.*"gpt3" cannot be imported/],
    ['an unknown split', { metadata: { 'tokenizer.ggml.pre': { text: 'gemma9' } } }, /tokenizer\.ggml\.pre.*gemma9/],
    ['a missing tensor', { tensors: { 'blk.0.attn_v.weight': null } }, /no matrix model\.layers\.0\.self_attn\.v_proj/],
    ['a missing norm', { tensors: { 'output_norm.weight': null } }, /"model\.norm\.weight": missing/],
    [
      'a foreign tensor',
      { tensors: { 'blk.0.ffn_gate_exps.weight': { dims: [64, 4], type: 0, bytes: floats(new Float32Array(256)) } } },
      /ffn_gate_exps\.weight".*mixture of experts/,
    ],
    [
      'a type that we lack',
      { tensors: { 'blk.0.ffn_up.weight': { dims: [256, 24], type: 14, bytes: new Uint8Array(24 * 210) } } },
      /"blk\.0\.ffn_up\.weight": type Q6_K cannot be imported/,
    ],
    [
      'a wrong shape',
      { tensors: { 'blk.0.attn_v.weight': { dims: [64, 48], type: 0, bytes: floats(new Float32Array(64 * 48)) } } },
      /v_proj\.weight is \[48, 64\]/,
    ],
    [
      'a scale that is not finite',
      { tensors: { 'blk.0.ffn_up.weight': { dims: [64, 96], type: 2, bytes: new Uint8Array(192 * 18).fill(0x7c) } } },
      /up_proj\.weight": a scale from row 0 on is not finite/,
    ],
  ] as [string, TinyOptions, RegExp][])('refuses %s and leaves nothing behind', async (_, options, message) => {
    const before = readdirSync(dir).filter((name) => name.startsWith('base-')).length
    await expect(importTiny(options, 'source')).rejects.toThrow(message)
    expect(readdirSync(dir).filter((name) => name.startsWith('base-')).length).toBe(before)
    expect(readdirSync(dir).filter((name) => name.includes('partial'))).toEqual([])
  })

  it('replaces a base, never another folder, and stops when told to', async () => {
    const { out, source } = await importTiny({}, 'int4')
    await importBase({ source, out, format: 'none' })
    expect(openBase(out).manifest.importFormat).toBe('none')
    const other = join(dir, 'mine')
    mkdirSync(other)
    writeFileSync(join(other, 'thesis.tex'), '')
    await expect(importBase({ source, out: other })).rejects.toThrow(/is no base directory/)
    const signal = AbortSignal.abort(new Error('stop'))
    await expect(importBase({ source, out: join(dir, 'never'), signal })).rejects.toThrow('stop')
    expect(existsSync(join(dir, 'never'))).toBe(false)
  })

  it('builds a SentencePiece tokenizer from scores', async () => {
    const tokens = ['<unk>', '<s>', '</s>', '▁', 'a', 'b', 'ab', '▁a', '▁ab', '<0x0A>', 'x', 'y']
    const { base } = await importTiny({
      metadata: {
        'tokenizer.ggml.model': { text: 'llama' },
        'tokenizer.ggml.tokens': { texts: tokens },
        'tokenizer.ggml.scores': { f32s: [0, 0, 0, -9, -8, -7, -2, -3, -1, 0, -10, -11] },
        'tokenizer.ggml.token_type': { i32s: [2, 3, 3, 1, 1, 1, 1, 1, 1, 6, 1, 1] },
        'tokenizer.ggml.bos_token_id': { u32: 1 },
        'tokenizer.ggml.eos_token_id': { u32: 2 },
        'tokenizer.ggml.unknown_token_id': { u32: 0 },
      },
    })
    const { model, post_processor: post } = base.tokenizerJson as {
      model: Record<string, unknown>
      post_processor: object
    }
    expect(model).toMatchObject({ byte_fallback: true, unk_token: '<unk>' })
    expect(model.merges).toEqual([
      ['▁', 'ab'],
      ['▁a', 'b'],
      ['a', 'b'],
      ['▁', 'a'],
    ])
    expect(post).toMatchObject({ type: 'TemplateProcessing', special_tokens: { '<s>': { ids: [1] } } })
    expect(base.tokenizerConfig).toMatchObject({ add_bos_token: true, bos_token: '<s>' })
  })
})
