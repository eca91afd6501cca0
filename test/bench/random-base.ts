// A base directory of a given shape with random 4-bit weights, for shapes whose weights are not at hand. Written once
// to the cache and mapped like a real one.
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type WeightFormat, weightTensors } from '../../src/compiler/ops/weight.js'
import { BASE_VERSION, baseFiles, partDtypes, WEIGHT_ALIGNMENT_BYTES } from '../../src/models/base-directory.js'
import { parseModelConfig } from '../../src/models/config.js'
import { architectureOf } from '../../src/models/index.js'
import { createSafetensors } from '../../src/models/safetensors-writer.js'

const block = 32
/** Half-precision bits of a scale of 2^-9 and an offset of −7.5 times it: codes 0–15 spread around 0 by about 0.009. */
const scaleBits = 0x1800
const offsetBits = 0xa380
/** 2^-13: 8-bit codes spread around 0 by about 0.009 as well. */
const scale8Bits = 0x0800
const pieceBytes = 1 << 22

/** xorshift32, Marsaglia 2003. */
function fillRandom(words: Uint32Array, seed: number): void {
  let state = seed >>> 0 || 1
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    words[i] = state
  }
}

/** Makes sure that the base is there → its folder. */
export function randomBase(folder: string, rawConfig: Record<string, unknown>): string {
  if (existsSync(join(folder, baseFiles.manifest))) return folder
  const aside = `${folder}.${process.pid}`
  rmSync(aside, { recursive: true, force: true })
  mkdirSync(aside, { recursive: true })
  const config = parseModelConfig(rawConfig)
  const formats: Record<string, { format: WeightFormat; block: number; shape: number[] }> = {}
  const matrix = (name: string, format: WeightFormat, shape: number[]) => {
    formats[name] = { format, block, shape }
  }
  const norm = (name: string) => {
    formats[name] = { format: 'f32', block: 1, shape: [config.hiddenSize] }
  }
  matrix('model.embed_tokens.weight', 'int8', [config.vocabSize, config.hiddenSize])
  if (!config.tieWordEmbeddings) matrix('lm_head.weight', 'int8', [config.vocabSize, config.hiddenSize])
  for (const { path, outFeatures, inFeatures } of architectureOf(config.modelType).linears(config)) {
    matrix(`${path}.weight`, 'int4', [outFeatures, inFeatures])
  }
  norm('model.norm.weight')
  for (let i = 0; i < config.numHiddenLayers; i++) {
    norm(`model.layers.${i}.input_layernorm.weight`)
    norm(`model.layers.${i}.post_attention_layernorm.weight`)
  }
  const parts = Object.entries(formats).flatMap(([name, { format, shape }]) => {
    const [rows, columns] = shape
    if (columns === undefined) return [{ name, dtype: 'F32', shape, suffix: '' as string, format }]
    return weightTensors(format, block, rows!, columns).map((part) => ({
      name: name + part.suffix,
      dtype: partDtypes[part.dtype]!,
      shape: part.shape as number[],
      suffix: part.suffix as string,
      format,
    }))
  })
  const writer = createSafetensors(join(aside, baseFiles.weights), parts, { alignment: WEIGHT_ALIGNMENT_BYTES })
  const random = new Uint32Array(pieceBytes / 4)
  for (const [index, { name, dtype, shape, suffix, format }] of parts.entries()) {
    const count = shape.reduce((a, b) => a * b, 1)
    if (suffix === '.codes') {
      for (let at = 0; at < count; at += pieceBytes) {
        fillRandom(random, index * 7919 + at + 1)
        writer.write(name, new Uint8Array(random.buffer, 0, Math.min(pieceBytes, count - at)), at)
      }
    } else if (dtype === 'F16') {
      const bits = suffix === '.offsets' ? offsetBits : format === 'int8' ? scale8Bits : scaleBits
      writer.write(name, new Uint8Array(new Uint16Array(count).fill(bits).buffer))
    } else {
      writer.write(name, new Uint8Array(new Float32Array(count).fill(1).buffer))
    }
  }
  writer.finish()
  writeFileSync(join(aside, baseFiles.config), JSON.stringify(rawConfig))
  const manifest = {
    version: BASE_VERSION,
    source: { name: 'random weights', sha256: '0'.repeat(64) },
    importFormat: 'int4',
    formats,
    quantizationError: {},
    notes: ['random weights of a benchmark'],
  }
  writeFileSync(join(aside, baseFiles.manifest), JSON.stringify(manifest))
  rmSync(folder, { recursive: true, force: true })
  renameSync(aside, folder)
  return folder
}
