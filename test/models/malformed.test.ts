// 1,000 mutated copies of each kind of file: a FormatError that names file and place, or a sound result; never a crash, a
// hang, a read out of bounds or memory that the file does not warrant.
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { openBase, openWeights } from '../../src/models/base-directory.js'
import { FormatError } from '../../src/models/format-error.js'
import { openGguf } from '../../src/models/gguf.js'
import { importBase } from '../../src/models/import.js'
import { loadAdapter } from '../../src/models/peft.js'
import { openSafetensors } from '../../src/models/safetensors.js'
import { goldenDir } from '../golden/folder.js'
import { tinyFolders } from './folders.js'
import { mutate, mutateSafetensors, randomOf } from './mutate.js'
import { writeTinyGguf } from './tiny-gguf.js'

const COPIES = 1000
/** A copy is handled in well under this, whatever it claims to hold. */
const SLOW_MS = 2000

const scratch = mkdtempSync(join(tmpdir(), 'espalier-malformed-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

/** Runs `read` on many mutated copies; counts how each ended. */
async function fuzz(
  path: string,
  make: (seed: number) => Uint8Array,
  read: (path: string) => unknown,
  copies = COPIES,
): Promise<{ refused: number; accepted: number }> {
  const counts = { refused: 0, accepted: 0 }
  // The file itself is fine: what is refused below is refused for its mutation.
  await read(path)
  for (let seed = 0; seed < copies; seed++) {
    writeFileSync(path, make(seed))
    const start = performance.now()
    try {
      await read(path)
      counts.accepted++
    } catch (error) {
      if (!(error instanceof FormatError)) {
        throw new Error(`seed ${seed}: ${(error as Error).stack}`, { cause: error })
      }
      expect(error.message, `seed ${seed}`).toContain(error.file)
      expect(error.place.length, `seed ${seed}`).toBeGreaterThan(0)
      counts.refused++
    }
    expect(performance.now() - start, `seed ${seed}`).toBeLessThan(SLOW_MS)
  }
  if (process.env.ESPALIER_FUZZ_COUNTS) console.log(path, counts)
  return counts
}

describe('malformed GGUF files', () => {
  it('with metadata of every type are read or refused', async () => {
    const bytes = readFileSync(goldenDir('quant/tiny.gguf'))
    writeFileSync(join(scratch, 'a.gguf'), bytes)
    const counts = await fuzz(
      join(scratch, 'a.gguf'),
      (seed) => mutate(bytes, randomOf(seed), 2200),
      (path) => {
        const file = openGguf(path)
        try {
          for (const tensor of file.tensors.values()) {
            const { native, blockBytes } = tensor.type
            native?.toParts(file.read(tensor), tensor.byteLength / blockBytes)
          }
        } finally {
          file.close()
        }
      },
    )
    expect(counts.refused).toBeGreaterThan(COPIES / 4)
  })

  it('of a model are imported or refused', async () => {
    const path = join(scratch, 'b.gguf')
    writeTinyGguf(path)
    const bytes = readFileSync(path)
    const words = ['llama', 'qwen2', 'blk.0.', 'attn_q', 'attn_k', 'ffn_up', 'ffn_down', 'smollm', 'gpt2', '.weight']
    const out = join(scratch, 'out')
    const counts = await fuzz(
      path,
      (seed) => mutate(bytes, randomOf(seed), 2600, words),
      async (source) => {
        await importBase({ source, out })
        const weights = openWeights(openBase(out))
        weights.rows('model.norm.weight')
        weights.close()
      },
    )
    expect(counts.refused).toBeGreaterThan(COPIES / 4)
  })

  it.each([
    ['a string longer than the file', 24, 2n ** 40n],
    ['more tensors than fit', 8, 2n ** 50n],
    ['more metadata than fits', 16, 2n ** 63n],
  ])('claiming %s are refused at once', (_, at, value) => {
    const bytes = Buffer.from(readFileSync(goldenDir('quant/tiny.gguf')))
    bytes.writeBigUInt64LE(value, at)
    const path = join(scratch, 'large.gguf')
    writeFileSync(path, bytes)
    expect(() => openGguf(path)).toThrow(FormatError)
  })
})

const safetensorsWords = ['F32', 'F16', 'BF16', 'I64', 'U8', 'X99', '0', '9', '[', ']', ',', '-', 'dtype', 'shape']

describe('malformed safetensors files', () => {
  const folder = tinyFolders().find(({ isSupported, dir }) => {
    try {
      return isSupported && readFileSync(join(dir, 'model.safetensors')).length > 0
    } catch {
      return false
    }
  })!

  it('are read or refused', async () => {
    const bytes = readFileSync(join(folder.dir, 'model.safetensors'))
    writeFileSync(join(scratch, 'a.safetensors'), bytes)
    const counts = await fuzz(
      join(scratch, 'a.safetensors'),
      (seed) => mutateSafetensors(bytes, randomOf(seed), safetensorsWords),
      (path) => {
        const file = openSafetensors(path)
        try {
          for (const entry of file.tensors.values()) expect(file.read(entry).byteLength).toBe(entry.byteLength)
        } finally {
          file.close()
        }
      },
    )
    expect(counts.refused).toBeGreaterThan(COPIES / 2)
  })

  it('of a folder are imported or refused', async () => {
    const dir = join(scratch, 'folder')
    cpSync(folder.dir, dir, { recursive: true })
    const bytes = readFileSync(join(folder.dir, 'model.safetensors'))
    const out = join(scratch, 'folder-out')
    await fuzz(
      join(dir, 'model.safetensors'),
      (seed) =>
        mutateSafetensors(bytes, randomOf(seed), [...safetensorsWords, 'q_proj', 'k_proj', 'layers.0', 'layers.1']),
      () => importBase({ source: dir, out }),
      200,
    )
  })

  it.each(['config.json', 'model.safetensors.index.json', 'tokenizer.json', 'tokenizer_config.json'])(
    'beside a malformed %s are imported or refused',
    async (name) => {
      const sharded = tinyFolders().find(({ dir, isSupported }) => {
        try {
          return isSupported && readFileSync(join(dir, 'model.safetensors.index.json')).length > 0
        } catch {
          return false
        }
      })
      const from = sharded ?? folder
      const dir = join(scratch, `beside-${name}`)
      cpSync(from.dir, dir, { recursive: true })
      let bytes: Uint8Array
      try {
        bytes = readFileSync(join(from.dir, name))
      } catch {
        return
      }
      const words = [
        'null',
        'true',
        '0',
        '1',
        '-1',
        '64',
        '1e9',
        '"x"',
        '[]',
        '{}',
        '../',
        'model-00001-of',
        'model-00002-of',
      ]
      await fuzz(
        join(dir, name),
        (seed) => mutate(bytes, randomOf(seed), bytes.length, words),
        () => importBase({ source: dir, out: join(scratch, 'beside-out') }),
        250,
      )
    },
  )

  it.each([
    ['overlapping tensors', { a: ['F32', [2], [0, 8]], b: ['F32', [2], [4, 12]] }, 12, /"b": overlaps/],
    ['a gap', { a: ['F32', [1], [0, 4]], b: ['F32', [1], [8, 12]] }, 12, /"b": leaves a gap/],
    ['bytes after the last tensor', { a: ['F32', [1], [0, 4]] }, 12, /tensors end at byte/],
    ['fewer bytes than the tensors', { a: ['F32', [4], [0, 16]] }, 8, /tensors end at byte/],
    ['a shape that its bytes do not hold', { a: ['F32', [3], [0, 8]] }, 8, /takes 12 bytes/],
    ['sizes that overflow', { a: ['F32', [2 ** 40, 2 ** 40], [0, 8]] }, 8, /"a": F32/],
    ['a negative size', { a: ['F32', [-2], [0, 8]] }, 8, /invalid shape/],
    ['offsets backwards', { a: ['F32', [2], [8, 0]] }, 8, /invalid data_offsets/],
    ['an unknown dtype', { a: ['__proto__', [2], [0, 8]] }, 8, /unknown dtype/],
  ] as [string, Record<string, [string, number[], number[]]>, number, RegExp][])(
    'with %s are refused',
    (_, entries, dataBytes, message) => {
      const header = Object.fromEntries(
        Object.entries(entries).map(([name, [dtype, shape, offsets]]) => [
          name,
          { dtype, shape, data_offsets: offsets },
        ]),
      )
      const text = Buffer.from(JSON.stringify(header))
      const length = Buffer.alloc(8)
      length.writeBigUInt64LE(BigInt(text.length))
      const path = join(scratch, 'one.safetensors')
      writeFileSync(path, Buffer.concat([length, text, Buffer.alloc(dataBytes)]))
      expect(() => openSafetensors(path)).toThrow(message)
    },
  )

  it('with a header larger than the file, or than the format allows, are refused before it is read', () => {
    const path = join(scratch, 'header.safetensors')
    for (const claimed of [100n, 100_000_001n, 2n ** 63n]) {
      const length = Buffer.alloc(16)
      length.writeBigUInt64LE(claimed)
      writeFileSync(path, length)
      expect(() => openSafetensors(path)).toThrow(/header length/)
    }
  })
})

describe('malformed adapters', () => {
  const linears = [0, 1].flatMap((layer) =>
    ['q_proj', 'v_proj'].map((name) => ({
      path: `model.layers.${layer}.self_attn.${name}`,
      inFeatures: 8,
      outFeatures: 4,
    })),
  )

  function writeAdapter(dir: string): void {
    mkdirSync(dir, { recursive: true })
    const header: Record<string, unknown> = { __metadata__: { format: 'pt' } }
    let end = 0
    for (const { path, inFeatures, outFeatures } of linears) {
      for (const [part, shape] of [
        ['lora_A', [2, inFeatures]],
        ['lora_B', [outFeatures, 2]],
      ] as [string, [number, number]][]) {
        const bytes = shape[0] * shape[1] * 4
        header[`base_model.model.${path}.${part}.weight`] = { dtype: 'F32', shape, data_offsets: [end, end + bytes] }
        end += bytes
      }
    }
    const text = Buffer.from(JSON.stringify(header))
    const length = Buffer.alloc(8)
    length.writeBigUInt64LE(BigInt(text.length))
    writeFileSync(join(dir, 'adapter_model.safetensors'), Buffer.concat([length, text, Buffer.alloc(end)]))
    const config = {
      peft_type: 'LORA',
      r: 2,
      lora_alpha: 4,
      lora_dropout: 0,
      bias: 'none',
      target_modules: ['q_proj', 'v_proj'],
      rank_pattern: {},
      alpha_pattern: {},
      use_dora: false,
      use_rslora: false,
      layers_to_transform: null,
    }
    writeFileSync(join(dir, 'adapter_config.json'), JSON.stringify(config, null, 2))
  }

  it('are loaded or refused, by their tensors', async () => {
    const dir = join(scratch, 'adapter')
    writeAdapter(dir)
    loadAdapter(dir, linears)
    const path = join(dir, 'adapter_model.safetensors')
    const bytes = readFileSync(path)
    const words = [...safetensorsWords, 'lora_A', 'lora_B', 'q_proj', 'v_proj', 'layers.0', 'layers.1']
    const counts = await fuzz(
      path,
      (seed) => mutateSafetensors(bytes, randomOf(seed), words),
      () => loadAdapter(dir, linears, { allowPartial: true }),
    )
    expect(counts.refused).toBeGreaterThan(COPIES / 2)
  })

  it('are loaded or refused, by their configuration', async () => {
    const dir = join(scratch, 'adapter-config')
    writeAdapter(dir)
    const path = join(dir, 'adapter_config.json')
    const bytes = readFileSync(path)
    const words = [
      'null',
      'true',
      'false',
      '0',
      '2',
      '-1',
      '[]',
      '{}',
      '"x"',
      '"q_proj"',
      '(',
      '.*',
      'rank_pattern',
      'r',
    ]
    const counts = await fuzz(
      path,
      (seed) => mutate(bytes, randomOf(seed), bytes.length, words),
      () => loadAdapter(dir, linears),
    )
    expect(counts.refused).toBeGreaterThan(COPIES / 4)
  })
})
