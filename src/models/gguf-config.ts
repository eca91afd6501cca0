// Hugging Face's config.json and tensor names from the metadata of a GGUF file, by GGUF architecture (gguf-py
// constants.py names the keys, convert_hf_to_gguf.py says what the converter did to each model).
import { FormatError } from './format-error.js'
import type { GgufFile, GgufTensor } from './gguf.js'

/** How an architecture of GGUF files maps to Hugging Face's. */
interface GgufFamily {
  modelType: string
  architecture: string
  /** llama.cpp stores the rows of q and k for rotating adjacent pairs (LlamaModel.permute). */
  permutesQueryKey: boolean
}

const families: Record<string, GgufFamily> = {
  llama: { modelType: 'llama', architecture: 'LlamaForCausalLM', permutesQueryKey: true },
  qwen2: { modelType: 'qwen2', architecture: 'Qwen2ForCausalLM', permutesQueryKey: false },
  qwen3: { modelType: 'qwen3', architecture: 'Qwen3ForCausalLM', permutesQueryKey: false },
}

/** A llama file with a window is a Mistral: the converter writes both under one name. */
const windowed: GgufFamily = { modelType: 'mistral', architecture: 'MistralForCausalLM', permutesQueryKey: true }

const blockNames: Record<string, string> = {
  attn_norm: 'input_layernorm',
  ffn_norm: 'post_attention_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  attn_q_norm: 'self_attn.q_norm',
  attn_k_norm: 'self_attn.k_norm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
}
const topNames: Record<string, string> = {
  token_embd: 'model.embed_tokens',
  output_norm: 'model.norm',
  output: 'lm_head',
}

/** Rotary factors of llama3 scaling, stored as a tensor; they belong to the config, not to the weights. */
const ROPE_FACTORS = 'rope_freqs.weight'

/** Hugging Face's name of a tensor of the file, or null where there is none. */
export function hfTensorName(name: string): string | null {
  const match = /^(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$/.exec(name)
  if (!match) return null
  const [, layer, part, kind] = match as unknown as [string, string | undefined, string, string]
  const names = layer === undefined ? topNames : blockNames
  const mapped = Object.hasOwn(names, part) ? names[part] : undefined
  if (mapped === undefined) return null
  return `${layer === undefined ? '' : `model.layers.${layer}.`}${mapped}.${kind}`
}

/** The shortest decimal that rounds to the same float32: metadata keeps 1e-05 as 9.999999747378752e-06. */
export function shortestFloat32(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits))
    if (Math.fround(short) === Math.fround(value)) return short
  }
  return value
}

/** Typed access to metadata with errors that name the key. */
export class GgufFields {
  private readonly file: GgufFile

  constructor(file: GgufFile) {
    this.file = file
  }

  fail(key: string, problem: string): FormatError {
    return new FormatError(this.file.path, `metadata ${JSON.stringify(key)}`, problem)
  }

  number(key: string): number | null {
    const entry = this.file.metadata.get(key)
    if (!entry) return null
    if (typeof entry.value !== 'number' || !Number.isFinite(entry.value)) {
      throw this.fail(key, `a number is expected, it is ${entry.type}`)
    }
    return entry.type === 'FLOAT32' ? shortestFloat32(entry.value) : entry.value
  }

  requiredNumber(key: string): number {
    const value = this.number(key)
    if (value === null) throw this.fail(key, 'missing')
    return value
  }

  text(key: string): string | null {
    const entry = this.file.metadata.get(key)
    if (!entry) return null
    if (typeof entry.value !== 'string') throw this.fail(key, `a string is expected, it is ${entry.type}`)
    return entry.value
  }

  boolean(key: string): boolean | null {
    const entry = this.file.metadata.get(key)
    if (!entry) return null
    if (typeof entry.value !== 'boolean') throw this.fail(key, `a boolean is expected, it is ${entry.type}`)
    return entry.value
  }

  strings(key: string): string[] | null {
    const entry = this.file.metadata.get(key)
    if (!entry) return null
    if (!Array.isArray(entry.value) || entry.itemType !== 'STRING')
      throw this.fail(key, 'an array of strings is expected')
    return entry.value as string[]
  }

  numbers(key: string): number[] | null {
    const entry = this.file.metadata.get(key)
    if (!entry) return null
    if (!Array.isArray(entry.value) || !entry.value.every((item) => typeof item === 'number')) {
      throw this.fail(key, 'an array of numbers is expected')
    }
    return entry.value as number[]
  }
}

export interface GgufModel {
  /** The content of config.json. */
  config: Record<string, unknown>
  /** Hugging Face name of every weight tensor. */
  tensors: Map<string, GgufTensor>
  /** The row of the file that is row `row` of the named tensor. */
  sourceRow(name: string, row: number): number
  /** Whether the rows of the named tensor are reordered. */
  isPermuted(name: string): boolean
}

function mapTensors(file: GgufFile): Map<string, GgufTensor> {
  const tensors = new Map<string, GgufTensor>()
  for (const tensor of file.tensors.values()) {
    if (tensor.name === ROPE_FACTORS) continue
    const name = hfTensorName(tensor.name)
    if (name === null) {
      throw new FormatError(
        file.path,
        `tensor ${JSON.stringify(tensor.name)}`,
        'has no place in the architectures that can be imported (a mixture of experts, or not a language model?)',
      )
    }
    tensors.set(name, tensor)
  }
  return tensors
}

/** Factors that divide the rotary frequencies under llama3 scaling, as convert_hf_to_gguf.py computes them. */
export function llama3Factors(
  theta: number,
  headDim: number,
  factor: number,
  lowFreqFactor: number,
  highFreqFactor: number,
  original: number,
): number[] {
  return Array.from({ length: headDim / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * theta ** ((2 * i) / headDim)
    if (wavelength < original / highFreqFactor) return 1
    if (wavelength > original / lowFreqFactor) return factor
    const smooth = (original / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor)
    return 1 / ((1 - smooth) / factor + smooth)
  })
}

/** Meta's settings of Llama 3.1 to 3.3; the factor alone differs between them and is read off the tensor. */
const LLAMA3 = { low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 }

function ropeScalingOf(file: GgufFile, fields: GgufFields, arch: string, theta: number, headDim: number) {
  const tensor = file.tensors.get(ROPE_FACTORS)
  if (tensor) {
    const fail = (problem: string) => new FormatError(file.path, `tensor "${ROPE_FACTORS}"`, problem)
    if (tensor.type.name !== 'F32' || tensor.shape.length !== 1 || tensor.shape[0] !== headDim / 2) {
      throw fail(`F32 [${headDim / 2}] is expected, it is ${tensor.type.name} [${tensor.shape}]`)
    }
    const factors = new Float32Array(file.read(tensor).buffer)
    const factor = shortestFloat32(Math.max(...factors))
    const { low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: original } = LLAMA3
    const expected = llama3Factors(theta, headDim, factor, low, high, original)
    if (!expected.every((value, i) => Math.abs(value - factors[i]!) <= 1e-4 * value)) {
      throw fail(
        `rotary factors that are not Llama 3's (${JSON.stringify(LLAMA3)}); import the Hugging Face folder instead`,
      )
    }
    return { rope_type: 'llama3', factor, ...LLAMA3 }
  }
  const type = fields.text(`${arch}.rope.scaling.type`)
  if (type === null || type === 'none') return null
  const factor = fields.requiredNumber(`${arch}.rope.scaling.factor`)
  const original = fields.number(`${arch}.rope.scaling.original_context_length`)
  return { rope_type: type, factor, ...(original === null ? {} : { original_max_position_embeddings: original }) }
}

/** Reads what the file says about its model. Throws FormatError naming the key or tensor. */
export function readGgufModel(file: GgufFile): GgufModel {
  const fields = new GgufFields(file)
  const arch = fields.text('general.architecture')
  if (arch === null) throw fields.fail('general.architecture', 'missing')
  const listed = Object.hasOwn(families, arch) ? families[arch]! : null
  if (!listed) {
    throw fields.fail(
      'general.architecture',
      `${JSON.stringify(arch)} cannot be imported (there are: ${Object.keys(families).join(', ')})`,
    )
  }
  const tensors = mapTensors(file)
  const embedding = tensors.get('model.embed_tokens.weight')
  if (!embedding) throw new FormatError(file.path, 'tensor "token_embd.weight"', 'missing')
  const number = (key: string) => fields.number(`${arch}.${key}`)
  const required = (key: string) => fields.requiredNumber(`${arch}.${key}`)

  const experts = number('expert_count')
  if (experts) throw fields.fail(`${arch}.expert_count`, `mixtures of experts (${experts} here) cannot be imported`)
  const slidingWindow = number('attention.sliding_window')
  const family = slidingWindow && listed.permutesQueryKey ? windowed : listed
  const hidden = required('embedding_length')
  const heads = required('attention.head_count')
  const kvHeads = number('attention.head_count_kv') ?? heads
  const headDim = number('attention.key_length') ?? hidden / heads
  const valueDim = number('attention.value_length')
  if (valueDim !== null && valueDim !== headDim) {
    throw fields.fail(`${arch}.attention.value_length`, `${valueDim} differs from the key length ${headDim}`)
  }
  const rotated = number('rope.dimension_count')
  if (rotated !== null && rotated !== headDim) {
    throw fields.fail(`${arch}.rope.dimension_count`, `only ${rotated} of ${headDim} dimensions are rotated`)
  }
  const theta = number('rope.freq_base') ?? 10000
  const config: Record<string, unknown> = {
    architectures: [family.architecture],
    model_type: family.modelType,
    vocab_size: embedding.shape[0],
    hidden_size: hidden,
    intermediate_size: required('feed_forward_length'),
    num_hidden_layers: required('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    hidden_act: 'silu',
    max_position_embeddings: required('context_length'),
    rms_norm_eps: required('attention.layer_norm_rms_epsilon'),
    rope_theta: theta,
    rope_scaling: ropeScalingOf(file, fields, arch, theta, headDim),
    attention_bias: tensors.has('model.layers.0.self_attn.q_proj.bias'),
    mlp_bias: tensors.has('model.layers.0.mlp.gate_proj.bias'),
    tie_word_embeddings: !tensors.has('lm_head.weight'),
    bos_token_id: fields.number('tokenizer.ggml.bos_token_id'),
    eos_token_id: fields.number('tokenizer.ggml.eos_token_id'),
    pad_token_id: fields.number('tokenizer.ggml.padding_token_id'),
  }
  if (slidingWindow) config.sliding_window = slidingWindow
  const isPermuted = (name: string) => family.permutesQueryKey && /\.[qk]_proj\.(weight|bias)$/.test(name)
  return {
    config,
    tensors,
    isPermuted,
    // Row h·Dh + j·Dh/2 + i (j: half of the head) is row h·Dh + 2i + j of the file.
    sourceRow(name, row) {
      if (!isPermuted(name)) return row
      const head = Math.floor(row / headDim)
      const inHead = row - head * headDim
      const half = headDim / 2
      const j = inHead < half ? 0 : 1
      return head * headDim + 2 * (inHead - j * half) + j
    },
  }
}
