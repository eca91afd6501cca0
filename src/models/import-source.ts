// What can be imported: a GGUF file or a Hugging Face folder, seen alike as a configuration, a tokenizer and tensors whose
// rows are read in pieces (stop 5 of a run).
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { basename, join } from 'node:path'
import { BinaryFile, CHUNK_BYTES } from './binary-file.js'
import { openCheckpoint, readJsonObject } from './checkpoint.js'
import { FormatError } from './format-error.js'
import { storedFormats } from './formats/index.js'
import { openGguf } from './gguf.js'
import { readGgufModel } from './gguf-config.js'
import { readGgufTokenizer } from './gguf-tokenizer.js'

export interface SourceTensor {
  /** Hugging Face's name. */
  name: string
  shape: number[]
  /** Name of the weight format that holds exactly these values. */
  format: string
  block: number
  /** Rows `from` to `to` in the parts of that format; a vector is one row. */
  readParts(from: number, to: number): Uint8Array[]
}

export interface ImportSource {
  path: string
  /** Bytes of the weights. */
  byteLength: number
  /** Content of config.json. */
  config: Record<string, unknown>
  /** Where that comes from, for messages. */
  configPath: string
  tensors: Map<string, SourceTensor>
  /** Texts of the files that go into the base beside config.json, by name. */
  files(): Map<string, string>
  /** SHA-256 of the weights: of the file, or of the list of the shards' names and hashes. */
  hash(onBytes?: (bytes: number) => void): Promise<string>
  close(): void
}

const rowsAndColumns = (shape: number[]): [number, number] =>
  shape.length === 2 ? [shape[0]!, shape[1]!] : [1, shape.reduce((product, size) => product * size, 1)]

/** SHA-256 of a file in hexadecimal, read in pieces with the event loop free in between. */
export async function hashFile(path: string, onBytes?: (bytes: number) => void): Promise<string> {
  const file = new BinaryFile(path)
  try {
    const hash = createHash('sha256')
    const buffer = new Uint8Array(4 * CHUNK_BYTES)
    for (let at = 0; at < file.byteLength; at += buffer.byteLength) {
      const length = Math.min(buffer.byteLength, file.byteLength - at)
      hash.update(file.read(at, length, 'hashing', buffer))
      onBytes?.(length)
      await new Promise(setImmediate)
    }
    return hash.digest('hex')
  } finally {
    file.close()
  }
}

function openGgufSource(path: string): ImportSource {
  const file = openGguf(path)
  try {
    const model = readGgufModel(file)
    const tensors = new Map<string, SourceTensor>()
    for (const [name, tensor] of model.tensors) {
      const place = `tensor ${JSON.stringify(tensor.name)}`
      const { native } = tensor.type
      if (!native) {
        throw new FormatError(
          path,
          place,
          `type ${tensor.type.name} cannot be imported (F32, F16, BF16, Q8_0, Q4_0 and Q4_1 can)`,
        )
      }
      if (tensor.shape.length > 2 || tensor.shape.length === 0) {
        throw new FormatError(path, place, `a vector or matrix is expected, it is [${tensor.shape}]`)
      }
      const [, columns] = rowsAndColumns(tensor.shape)
      const { blockValues, blockBytes } = tensor.type
      const rowBytes = (columns / blockValues) * blockBytes
      const isVector = tensor.shape.length === 1
      if (isVector && blockValues > 1) throw new FormatError(path, place, `a vector of type ${tensor.type.name}`)
      // A vector's entries are the rows of its matrix.
      const unit = isVector ? blockBytes : rowBytes
      const readBytes = (from: number, to: number): Uint8Array => {
        const bytes = new Uint8Array((to - from) * unit)
        for (let row = from; row < to; row++) {
          const source = model.sourceRow(name, row) * unit
          bytes.set(file.read(tensor, source, source + unit), (row - from) * unit)
        }
        return bytes
      }
      tensors.set(name, {
        name,
        shape: tensor.shape,
        format: native.format,
        block: native.block,
        readParts(from, to) {
          const [first, last] = isVector ? [0, columns] : [from, to]
          const bytes = model.isPermuted(name) ? readBytes(first, last) : file.read(tensor, first * unit, last * unit)
          return native.toParts(bytes, bytes.byteLength / blockBytes)
        },
      })
    }
    const tokenizer = readGgufTokenizer(file)
    return {
      path,
      byteLength: statSync(path).size,
      config: model.config,
      configPath: path,
      tensors,
      files: () =>
        new Map([
          ['tokenizer.json', JSON.stringify(tokenizer.tokenizer)],
          ['tokenizer_config.json', JSON.stringify(tokenizer.tokenizerConfig, null, 2)],
        ]),
      hash: (onBytes) => hashFile(path, onBytes),
      close: () => file.close(),
    }
  } catch (error) {
    file.close()
    throw error
  }
}

const denseFormats: Record<string, string> = { F32: 'f32', F16: 'f16', BF16: 'bf16' }

/** Tensors that old checkpoints store though they follow from the config. */
const isDerived = (name: string) => name.endsWith('.rotary_emb.inv_freq')

function readText(path: string): string {
  readJsonObject(path)
  return readFileSync(path, 'utf8')
}

/** tokenizer_config.json with the template that newer checkpoints keep in a file of its own. */
function readTokenizerConfig(dir: string): string {
  const path = join(dir, 'tokenizer_config.json')
  const config = existsSync(path) ? readJsonObject(path) : {}
  const template = join(dir, 'chat_template.jinja')
  if (existsSync(template)) config.chat_template = readFileSync(template, 'utf8')
  else if (Array.isArray(config.chat_template)) {
    const named = config.chat_template as { name?: unknown; template?: unknown }[]
    const chosen = named.find((entry) => entry?.name === 'default') ?? named[0]
    if (typeof chosen?.template !== 'string') throw new FormatError(path, 'chat_template', 'no template in the list')
    config.chat_template = chosen.template
  }
  return JSON.stringify(config, null, 2)
}

function openFolderSource(dir: string): ImportSource {
  const config = readJsonObject(join(dir, 'config.json'))
  if (!existsSync(join(dir, 'tokenizer.json'))) {
    throw new FormatError(
      dir,
      'tokenizer.json',
      'missing (save it with `AutoTokenizer.from_pretrained(…).save_pretrained(…)`)',
    )
  }
  const quantized = config.quantization_config as { quant_method?: unknown } | undefined
  if (quantized) {
    throw new FormatError(
      join(dir, 'config.json'),
      'quantization_config',
      `weights already quantized (${JSON.stringify(quantized.quant_method)}) cannot be imported; use the original folder or a GGUF file`,
    )
  }
  const checkpoint = openCheckpoint(dir)
  try {
    const tensors = new Map<string, SourceTensor>()
    for (const [name, { entry, file }] of checkpoint.tensors) {
      if (isDerived(name)) continue
      const place = `tensor ${JSON.stringify(name)}`
      const format = denseFormats[entry.dtype]
      if (!format) throw new FormatError(file.path, place, `dtype ${entry.dtype} is no weight (F32, F16 and BF16 are)`)
      if (entry.shape.length === 0 || entry.shape.length > 2) {
        throw new FormatError(file.path, place, `a vector or matrix is expected, it is [${entry.shape}]`)
      }
      const [rows] = rowsAndColumns(entry.shape)
      const rowBytes = entry.byteLength / rows
      tensors.set(name, {
        name,
        shape: entry.shape,
        format,
        block: 1,
        readParts: (from, to) => [file.read(entry, from * rowBytes, to * rowBytes)],
      })
    }
    if (config.tie_word_embeddings === true) tensors.delete('lm_head.weight')
    return {
      path: dir,
      byteLength: checkpoint.files.reduce((sum, file) => sum + statSync(file).size, 0),
      config,
      configPath: join(dir, 'config.json'),
      tensors,
      files() {
        const files = new Map([
          ['tokenizer.json', readText(join(dir, 'tokenizer.json'))],
          ['tokenizer_config.json', readTokenizerConfig(dir)],
        ])
        const generation = join(dir, 'generation_config.json')
        if (existsSync(generation)) files.set('generation_config.json', readText(generation))
        return files
      },
      async hash(onBytes) {
        const lines: string[] = []
        for (const path of checkpoint.files) lines.push(`${await hashFile(path, onBytes)}  ${basename(path)}\n`)
        return createHash('sha256').update(lines.join('')).digest('hex')
      },
      close: () => checkpoint.close(),
    }
  } catch (error) {
    checkpoint.close()
    throw error
  }
}

/** Opens a GGUF file or a Hugging Face folder. Throws FormatError. */
export function openSource(path: string): ImportSource {
  if (!existsSync(path)) throw new FormatError(path, 'source', 'no such file or folder')
  return statSync(path).isDirectory() ? openFolderSource(path) : openGgufSource(path)
}

/** float32 values of rows `from` to `to` of a source tensor. */
export function readValues(tensor: SourceTensor, from: number, to: number): Float32Array {
  const [, columns] = rowsAndColumns(tensor.shape)
  const format = storedFormats[tensor.format as keyof typeof storedFormats]
  return format.unpack(tensor.readParts(from, to), columns, tensor.block, 0, to - from)
}

export { rowsAndColumns }
