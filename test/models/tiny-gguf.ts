// A tiny model as a GGUF file, with a value per weight that tells where it came from.
import { floats, type GgufTensorInput, type MetaValue, writeGguf } from './write-gguf.js'

export const tiny = { hidden: 64, heads: 4, kvHeads: 2, headDim: 16, intermediate: 96, vocab: 12, layers: 1 }

export interface TinyOptions {
  arch?: string
  metadata?: Record<string, MetaValue>
  /** Replaces or adds tensors by name; null leaves one out. */
  tensors?: Record<string, Omit<GgufTensorInput, 'name'> | null>
}

/** Row-major values of a matrix [rows, columns]: small, different everywhere. */
export const valuesOf = (rows: number, columns: number, seed = 0): Float32Array =>
  new Float32Array(rows * columns).map((_, i) => Math.sin(i * 0.7 + seed) * 0.1)

const tokens = ['<|end|>', '<|user|>', 'a', 'b', 'c', 'Ġ', 'ab', 'bc', '1', '2', 'Ġa', 'abc']

export function writeTinyGguf(path: string, options: TinyOptions = {}): void {
  const arch = options.arch ?? 'llama'
  const { hidden, heads, kvHeads, headDim, intermediate, vocab, layers } = tiny
  const matrix = (rows: number, columns: number, seed: number) => ({
    dims: [columns, rows],
    type: 0,
    bytes: floats(valuesOf(rows, columns, seed)),
  })
  const vector = (length: number) => ({ dims: [length], type: 0, bytes: floats(new Float32Array(length).fill(1)) })
  const tensors: Record<string, Omit<GgufTensorInput, 'name'> | null> = {
    'token_embd.weight': matrix(vocab, hidden, 1),
    'blk.0.attn_norm.weight': vector(hidden),
    'blk.0.attn_q.weight': matrix(heads * headDim, hidden, 2),
    'blk.0.attn_k.weight': matrix(kvHeads * headDim, hidden, 3),
    'blk.0.attn_v.weight': matrix(kvHeads * headDim, hidden, 4),
    'blk.0.attn_output.weight': matrix(hidden, heads * headDim, 5),
    'blk.0.ffn_norm.weight': vector(hidden),
    'blk.0.ffn_gate.weight': matrix(intermediate, hidden, 6),
    'blk.0.ffn_up.weight': matrix(intermediate, hidden, 7),
    'blk.0.ffn_down.weight': matrix(hidden, intermediate, 8),
    'output_norm.weight': vector(hidden),
    ...options.tensors,
  }
  const metadata: Record<string, MetaValue> = {
    'general.architecture': { text: arch },
    [`${arch}.block_count`]: { u32: layers },
    [`${arch}.context_length`]: { u32: 256 },
    [`${arch}.embedding_length`]: { u32: hidden },
    [`${arch}.feed_forward_length`]: { u32: intermediate },
    [`${arch}.attention.head_count`]: { u32: heads },
    [`${arch}.attention.head_count_kv`]: { u32: kvHeads },
    [`${arch}.attention.layer_norm_rms_epsilon`]: { f32: 1e-5 },
    [`${arch}.rope.freq_base`]: { f32: 500000 },
    'tokenizer.ggml.model': { text: 'gpt2' },
    'tokenizer.ggml.pre': { text: 'smollm' },
    'tokenizer.ggml.tokens': { texts: tokens },
    'tokenizer.ggml.token_type': { i32s: tokens.map((_, i) => (i === 0 ? 3 : i === 1 ? 4 : 1)) },
    'tokenizer.ggml.merges': { texts: ['a b', 'b c', 'Ġ a', 'ab c'] },
    'tokenizer.ggml.eos_token_id': { u32: 0 },
    ...options.metadata,
  }
  writeGguf(
    path,
    metadata,
    Object.entries(tensors).flatMap(([name, tensor]) => (tensor ? [{ name, ...tensor }] : [])),
  )
}
