// Import of Hugging Face folders: every tiny reference model, formats, shards, and what is refused.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type OpenedBase, openBase, openWeights } from '../../src/models/base-directory.js'
import { float32ToBfloat16 } from '../../src/models/float16.js'
import { type ImportFormatName, importBase, importFormats } from '../../src/models/import.js'
import { openSafetensors } from '../../src/models/safetensors.js'
import { writeSafetensors } from '../../src/models/safetensors-writer.js'
import { readTensors } from '../golden/safetensors.js'
import { tinyFolders } from './folders.js'

const scratch = mkdtempSync(join(tmpdir(), 'espalier-folder-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))
let count = 0
const fresh = () => join(scratch, `${count++}`)

function valuesOf(base: OpenedBase, name: string): Float32Array {
  const weights = openWeights(base)
  try {
    return weights.rows(name)
  } finally {
    weights.close()
  }
}

/** Tensors of a folder, read by the test's own reader. */
function sourceTensors(dir: string) {
  try {
    return readTensors(join(dir, 'model.safetensors'))
  } catch {
    const index = JSON.parse(readFileSync(join(dir, 'model.safetensors.index.json'), 'utf8')) as {
      weight_map: Record<string, string>
    }
    return new Map([...new Set(Object.values(index.weight_map))].flatMap((shard) => [...readTensors(join(dir, shard))]))
  }
}

describe('import of a folder', () => {
  for (const { name, dir, modelType, isSupported } of tinyFolders()) {
    if (!isSupported) {
      it(`${name}: refuses model type ${modelType}`, async () => {
        await expect(importBase({ source: dir, out: fresh() })).rejects.toThrow(/not supported/)
      })
      continue
    }
    it(`${name}: keeps every value with format none`, async () => {
      const out = fresh()
      const { quantizationError } = await importBase({ source: dir, out, format: 'none' })
      expect(quantizationError).toEqual({})
      const base = openBase(out)
      for (const [tensor, { shape, data }] of sourceTensors(dir)) {
        expect(base.manifest.formats[tensor]!.shape, tensor).toEqual(shape)
        expect([...valuesOf(base, tensor)], tensor).toEqual([...(data as Float32Array)])
      }
      expect(base.rawConfig).toEqual(JSON.parse(readFileSync(join(dir, 'config.json'), 'utf8')))
      expect(base.tokenizerJson).toEqual(JSON.parse(readFileSync(join(dir, 'tokenizer.json'), 'utf8')))
    })

    it.each(Object.keys(importFormats) as ImportFormatName[])(`${name}: format %s`, async (format) => {
      const out = fresh()
      const { quantizationError, notes } = await importBase({ source: dir, out, format })
      const base = openBase(out)
      for (const [tensor, { shape, data }] of sourceTensors(dir)) {
        const original = data as Float32Array
        const values = valuesOf(base, tensor)
        const squares = original.reduce((sum, value) => sum + value * value, 0)
        const differences = original.reduce((sum, value, i) => sum + (value - values[i]!) ** 2, 0)
        const error = Math.sqrt(differences / squares)
        expect(quantizationError[tensor] ?? 0, tensor).toBeCloseTo(error, 6)
        const stored = base.manifest.formats[tensor]!
        if (shape.length === 1) expect(stored.format).toBe('f32')
        else expect(error, tensor).toBeLessThan(stored.format === 'int8' ? 0.01 : 0.12)
        const isNoted = notes.some((note) => note.startsWith(`${tensor}:`))
        if (format !== 'none' && shape.length === 2) expect(stored.block === 1, tensor).toBe(isNoted)
      }
      // Bindable in a map of the file, in the layout that the ops expect.
      for (const [tensor, { byteOffset }] of base.tensors) expect(byteOffset % 64, tensor).toBe(0)
    })
  }
})

describe('a folder', () => {
  const model = tinyFolders().find(({ isSupported }) => isSupported)!
  let dir: string
  beforeAll(() => {
    dir = join(scratch, 'model')
    cpSync(model.dir, dir, { recursive: true })
  })

  /** A copy with its tensors rewritten. */
  function rewrite(
    change: (name: string, values: Float32Array) => { dtype: string; bytes: Uint8Array } | null,
  ): string {
    const copy = join(scratch, `copy-${count++}`)
    cpSync(model.dir, copy, { recursive: true })
    const tensors = [...sourceTensors(model.dir)].flatMap(([name, { shape, data }]) => {
      const changed = change(name, data as Float32Array)
      return changed ? [{ name, shape: [...shape] as number[], ...changed }] : []
    })
    rmSync(join(copy, 'model.safetensors.index.json'), { force: true })
    writeSafetensors(join(copy, 'model.safetensors'), tensors, { format: 'pt' })
    return copy
  }
  const asF32 = (values: Float32Array) => ({ dtype: 'F32', bytes: new Uint8Array(values.slice().buffer) })

  it('of bfloat16 stays bfloat16 without quantization, its vectors become float32', async () => {
    const copy = rewrite((_, values) => ({ dtype: 'BF16', bytes: new Uint8Array(float32ToBfloat16(values).buffer) }))
    const out = fresh()
    await importBase({ source: copy, out, format: 'none' })
    const formats = Object.values(openBase(out).manifest.formats)
    expect(new Set(formats.map(({ format, shape }) => `${shape.length} ${format}`))).toEqual(
      new Set(['2 bf16', '1 f32']),
    )
  })

  it('with a tensor of the wrong dtype is refused', async () => {
    const copy = rewrite((name, values) =>
      name.includes('q_proj.weight') ? { dtype: 'I32', bytes: new Uint8Array(values.length * 4) } : asF32(values),
    )
    await expect(importBase({ source: copy, out: fresh() })).rejects.toThrow(/q_proj\.weight": dtype I32/)
  })

  it('with a value that is not finite is refused when it is quantized', async () => {
    const copy = rewrite((name, values) => {
      const changed = values.slice()
      if (name.includes('layers.0.mlp.up_proj')) changed[77] = Number.NaN
      return asF32(changed)
    })
    await expect(importBase({ source: copy, out: fresh() })).rejects.toThrow(/layers\.0\.mlp\.up_proj\.weight".*finite/)
  })

  it('with a missing norm is refused', async () => {
    const copy = rewrite((name, values) => (name === 'model.norm.weight' ? null : asF32(values)))
    await expect(importBase({ source: copy, out: fresh() })).rejects.toThrow(/model\.norm\.weight": missing/)
  })

  it('takes the chat template from its own file or a list', async () => {
    writeFileSync(join(dir, 'chat_template.jinja'), '{{ messages }}')
    const out = fresh()
    await importBase({ source: dir, out })
    expect(openBase(out).tokenizerConfig.chat_template).toBe('{{ messages }}')
    rmSync(join(dir, 'chat_template.jinja'))
    const templates = [
      { name: 'tool_use', template: 'a' },
      { name: 'default', template: 'b' },
    ]
    writeFileSync(join(dir, 'tokenizer_config.json'), JSON.stringify({ chat_template: templates }))
    await importBase({ source: dir, out })
    expect(openBase(out).tokenizerConfig.chat_template).toBe('b')
  })

  it.each(['../model.safetensors', '/etc/passwd', 'a/b.safetensors', '..\\x.safetensors', 'x.bin', '', 7, null])(
    'refuses a shard named %j',
    async (shard) => {
      const copy = join(scratch, `shard-${count++}`)
      cpSync(model.dir, copy, { recursive: true })
      const index = { weight_map: { 'model.norm.weight': shard } }
      writeFileSync(join(copy, 'model.safetensors.index.json'), JSON.stringify(index))
      await expect(importBase({ source: copy, out: fresh() })).rejects.toThrow(
        /index\.json: weight_map entry "model\.norm\.weight"/,
      )
    },
  )
})

describe('a base directory', () => {
  it('is refused where a tensor is missing, of another shape, or not listed', async () => {
    const { dir } = tinyFolders().find(({ isSupported }) => isSupported)!
    const out = fresh()
    await importBase({ source: dir, out, format: 'int4' })
    const path = join(out, 'espalier.json')
    const text = readFileSync(path, 'utf8')
    const change = (from: string | RegExp, to: string) => writeFileSync(path, text.replace(from, to))
    change('model.norm.weight', 'model.norm2.weight')
    expect(() => openBase(out)).toThrow(/weights\.safetensors: tensor "model\.norm2\.weight": missing/)
    change('"format": "int4"', '"format": "nf4"')
    expect(() => openBase(out)).toThrow(/weights\.safetensors: tensor .*is U8|missing/)
    change(/"model\.norm\.weight": \{[^}]*\},?/, '')
    expect(() => openBase(out)).toThrow(/espalier\.json/)
    writeFileSync(path, text)
    expect(openBase(out).tensors.size).toBeGreaterThan(0)
    const file = openSafetensors(join(out, 'weights.safetensors'))
    file.close()
  })
})
