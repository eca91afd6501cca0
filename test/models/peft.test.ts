// PEFT folders: the reference adapters byte for byte, matching rules, partial loads, first values.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { initAdapter, layoutAdapter, viewTensor } from '../../src/models/adapter-layout.js'
import { parseModelConfig } from '../../src/models/config.js'
import { float32ToBfloat16 } from '../../src/models/float16.js'
import { architectureOf } from '../../src/models/index.js'
import { formatPeftConfig, type LoraConfig, loraDefaults, parsePeftConfig } from '../../src/models/lora-config.js'
import { resolveTargets } from '../../src/models/lora-targets.js'
import { loadAdapter, saveAdapter } from '../../src/models/peft.js'
import { writeSafetensors } from '../../src/models/safetensors-writer.js'
import { goldenDir } from '../golden/folder.js'
import { readTensors } from '../golden/safetensors.js'

const scratch = mkdtempSync(join(tmpdir(), 'espalier-peft-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))
let count = 0
const fresh = () => join(scratch, `${count++}`)

const readJson = (path: string) => JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>
const config = parseModelConfig(readJson(goldenDir('models/base/config.json')))
const linears = architectureOf(config.modelType).linears(config)
const adapters = ['adapter-start', 'adapter-end'].map((name) => goldenDir('models/sft', name))

describe('a reference adapter', () => {
  it.each(adapters)('%s loads completely and is written back the same', (dir) => {
    const loaded = loadAdapter(dir, linears)
    const expected = readTensors(join(dir, 'adapter_model.safetensors'))
    expect(loaded.report).toEqual({ matched: expect.any(Array), missing: [], unexpected: [] })
    expect(loaded.report.matched.length).toBe(expected.size)
    for (const tensor of loaded.layout.tensors) {
      expect(tensor.offset % 16).toBe(0)
      expect([...viewTensor(loaded.values, tensor)], tensor.name).toEqual(Array.from(expected.get(tensor.name)!.data))
    }
    const out = fresh()
    saveAdapter(out, { ...loaded, values: loaded.values })
    const weights = 'adapter_model.safetensors'
    expect(readFileSync(join(out, weights)).equals(readFileSync(join(dir, weights)))).toBe(true)
    const text = readFileSync(join(out, 'adapter_config.json'), 'utf8')
    const golden = readJson(join(dir, 'adapter_config.json'))
    expect(JSON.parse(text)).toEqual({ ...golden, peft_version: expect.any(String) })
    expect(Object.keys(JSON.parse(text) as object)).toEqual(Object.keys(golden).sort())
    expect(text).toContain('"lora_dropout": 0.0')
  })

  it('has the slices that graphs are traced with', () => {
    const { layout } = loadAdapter(adapters[0]!, linears)
    for (const [path, linear] of layout.adapter.linears) {
      const [a, b] = layout.tensors.filter((tensor) => tensor.path === path)
      expect(linear).toMatchObject({ offset: a!.offset, bOffset: b!.offset - a!.offset })
      expect(linear.offset + linear.length).toBeLessThanOrEqual(layout.length)
    }
  })
})

const lora = (options: Partial<LoraConfig>): LoraConfig => ({ ...loraDefaults, ...options })
const pathsOf = (options: Partial<LoraConfig>) => resolveTargets(lora(options), linears).map(({ path }) => path)

describe('targets', () => {
  it('by name match whole last parts', () => {
    expect(pathsOf({ targetModules: ['q_proj', 'v_proj'] }).length).toBe(2 * config.numHiddenLayers)
    expect(pathsOf({ targetModules: ['self_attn.q_proj'] }).length).toBe(config.numHiddenLayers)
    expect(pathsOf({ targetModules: ['model.layers.3.mlp.up_proj'] })).toEqual(['model.layers.3.mlp.up_proj'])
    expect(() => pathsOf({ targetModules: ['proj'] })).toThrow(/"proj" is no linear.*q_proj/)
  })

  it('by regular expression match the whole path', () => {
    expect(pathsOf({ targetModules: '.*layers\\.(?P<n>0|1)\\..*_proj' }).length).toBe(14)
    expect(() => pathsOf({ targetModules: 'q_proj' })).toThrow(/matches no linear/)
    expect(() => pathsOf({ targetModules: '(' })).toThrow(/no regular expression/)
  })

  it('all-linear takes every linear but the head', () => {
    expect(pathsOf({ targetModules: 'all-linear' })).toEqual(linears.map(({ path }) => path))
  })

  it('are limited to layers and thinned by exclusion', () => {
    expect(pathsOf({ targetModules: ['q_proj'], layersToTransform: [2, 5] })).toEqual(
      [2, 5].map((layer) => `model.layers.${layer}.self_attn.q_proj`),
    )
    const layers = { layersToTransform: [2], layersPattern: ['layers'] }
    expect(pathsOf({ targetModules: 'all-linear', ...layers }).length).toBe(7)
    expect(pathsOf({ targetModules: ['q_proj', 'k_proj'], excludeModules: ['q_proj'] }).length).toBe(
      config.numHiddenLayers,
    )
    expect(() => pathsOf({ targetModules: '.*q_proj', layersToTransform: [1] })).toThrow(/layersToTransform/)
  })

  it('take rank and alpha from patterns, the first match counting', () => {
    const targets = resolveTargets(
      lora({
        targetModules: ['q_proj', 'down_proj'],
        rank: 8,
        alpha: 16,
        rankPattern: { 'layers\\.0\\.self_attn\\.q_proj': 4, q_proj: 2, own_proj: 1 },
        alphaPattern: { 'model.layers.1.mlp.down_proj': 32 },
        useRslora: true,
      }),
      linears,
    )
    const by = new Map(targets.map((target) => [target.path, target]))
    expect(by.get('model.layers.0.self_attn.q_proj')).toMatchObject({ rank: 4, alpha: 16, scaling: 8 })
    expect(by.get('model.layers.1.self_attn.q_proj')).toMatchObject({ rank: 2, scaling: 16 / Math.SQRT2 })
    // `own_proj` is no whole part of a path.
    expect(by.get('model.layers.0.mlp.down_proj')).toMatchObject({ rank: 8, alpha: 16 })
    expect(by.get('model.layers.1.mlp.down_proj')).toMatchObject({ alpha: 32, scaling: 32 / Math.sqrt(8) })
  })
})

describe('a new adapter', () => {
  const targets = resolveTargets(lora({ rank: 16, targetModules: ['q_proj', 'down_proj'] }), linears)

  it('starts with A uniform in ±1/√in and B zero, by seed and name', () => {
    const layout = layoutAdapter(targets, { useDora: false, dropout: 0 })
    const values = new Float32Array(layout.length)
    initAdapter(layout, values, { seed: 7 })
    for (const tensor of layout.tensors.slice(0, 40)) {
      const view = viewTensor(values, tensor)
      if (tensor.kind === 'loraB') {
        expect(view.every((value) => value === 0)).toBe(true)
        continue
      }
      const bound = 1 / Math.sqrt(tensor.shape[1]!)
      const mean = view.reduce((sum, value) => sum + value, 0) / view.length
      const variance = view.reduce((sum, value) => sum + value * value, 0) / view.length
      expect(view.every((value) => Math.abs(value) <= bound)).toBe(true)
      expect(Math.abs(mean)).toBeLessThan((4 * bound) / Math.sqrt(3 * view.length))
      expect(variance / (bound * bound * (1 / 3))).toBeCloseTo(1, 1)
    }
    // Fewer targets give the same numbers to those that remain.
    const fewer = layoutAdapter(targets.slice(5), { useDora: true, dropout: 0 })
    const others = new Float32Array(fewer.length)
    initAdapter(fewer, others, { seed: 7, rowNorms: (path) => new Float32Array(sizeOf(path)).fill(2) })
    const tensor = fewer.tensors.find(({ kind }) => kind === 'loraA')!
    const same = layout.tensors.find(({ name }) => name === tensor.name)!
    expect(viewTensor(others, tensor)).toEqual(viewTensor(values, same))
    const magnitude = fewer.tensors.find(({ kind }) => kind === 'magnitude')!
    expect(viewTensor(others, magnitude).every((value) => value === 2)).toBe(true)
    initAdapter(layout, values, { seed: 8 })
    expect(viewTensor(others, tensor)).not.toEqual(viewTensor(values, same))
  })

  const sizeOf = (path: string) => linears.find((linear) => linear.path === path)!.outFeatures

  it('can start normal', () => {
    const layout = layoutAdapter(targets.slice(0, 2), { useDora: false, dropout: 0 })
    const values = new Float32Array(layout.length)
    initAdapter(layout, values, { seed: 1, initLoraWeights: 'gaussian' })
    const view = viewTensor(values, layout.tensors[0]!)
    const deviation = Math.sqrt(view.reduce((sum, value) => sum + value * value, 0) / view.length)
    expect(deviation * 16).toBeCloseTo(1, 1)
  })

  it('survives writing and reading with DoRA, patterns and rsLoRA', () => {
    const settings = lora({
      rank: 4,
      alpha: 6,
      dropout: 0.05,
      targetModules: ['q_proj'],
      layersToTransform: [0, 3],
      rankPattern: { 'layers.3.self_attn.q_proj': 2 },
      useDora: true,
      useRslora: true,
    })
    const layout = layoutAdapter(resolveTargets(settings, linears), { useDora: true, dropout: 0.05 })
    const values = new Float32Array(layout.length)
    initAdapter(layout, values, { seed: 3, rowNorms: (path) => new Float32Array(sizeOf(path)).fill(0.5) })
    const dir = fresh()
    saveAdapter(dir, { lora: settings, layout, values, baseModel: 'base' })
    const loaded = loadAdapter(dir, linears)
    expect(loaded.lora).toEqual(settings)
    expect(loaded.layout).toEqual(layout)
    expect(loaded.values).toEqual(values)
    expect(loaded).toMatchObject({ baseModel: 'base', taskType: 'CAUSAL_LM' })
    expect([...readTensors(join(dir, 'adapter_model.safetensors')).keys()]).toContain(
      'base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector',
    )
  })

  it('names the modules that all-linear stood for', () => {
    const layout = layoutAdapter(resolveTargets(lora({}), linears), { useDora: false, dropout: 0 })
    const dir = fresh()
    saveAdapter(dir, { lora: lora({}), layout, values: new Float32Array(layout.length), baseModel: null })
    expect(readJson(join(dir, 'adapter_config.json')).target_modules).toEqual([
      'down_proj',
      'gate_proj',
      'k_proj',
      'o_proj',
      'q_proj',
      'up_proj',
      'v_proj',
    ])
  })
})

describe('an adapter that does not fit', () => {
  /** The reference adapter with its tensors and configuration changed. */
  function changed(
    tensorsOf: (name: string) => string | null,
    change: Record<string, unknown> = {},
    dtype: 'F32' | 'BF16' = 'F32',
  ): string {
    const dir = fresh()
    cpSync(adapters[0]!, dir, { recursive: true })
    const tensors = [...readTensors(join(dir, 'adapter_model.safetensors'))].flatMap(([name, { shape, data }]) => {
      const renamed = tensorsOf(name)
      const values = data as Float32Array
      const bytes = new Uint8Array(dtype === 'F32' ? values.slice().buffer : float32ToBfloat16(values).buffer)
      return renamed ? [{ name: renamed, dtype, shape: [...shape] as number[], bytes }] : []
    })
    writeSafetensors(join(dir, 'adapter_model.safetensors'), tensors, { format: 'pt' })
    const path = join(dir, 'adapter_config.json')
    writeFileSync(path, JSON.stringify({ ...readJson(path), ...change }))
    return dir
  }
  const same = (name: string) => name

  it('is refused where no tensor matches', () => {
    const dir = changed((name) => name.replace('base_model.model.', 'base_model.'))
    expect(() => loadAdapter(dir, linears)).toThrow(/: 0 tensors match, \d+ are missing, \d+ have no place/)
    expect(() => loadAdapter(dir, linears, { allowPartial: true })).toThrow(/0 tensors match/)
  })

  it('is refused where part of it matches, and loads when that is allowed', () => {
    const lacking = 'model.layers.1.mlp.up_proj'
    const dir = changed((name) => (name.includes(`${lacking}.lora_B`) ? name.replace('mlp', 'moe') : name))
    expect(() => loadAdapter(dir, linears)).toThrow(/1 are missing, 1 have no place.*allowPartial/)
    const loaded = loadAdapter(dir, linears, { allowPartial: true })
    expect(loaded.report.missing).toEqual([`base_model.model.${lacking}.lora_B.weight`])
    expect(loaded.layout.adapter.linears.has(lacking)).toBe(false)
    expect(loaded.layout.adapter.linears.size).toBe(linears.length - 1)
  })

  it('is refused where the rank differs', () => {
    expect(() => loadAdapter(changed(same, { r: 2 }), linears)).toThrow(
      /lora_A\.weight": is \[4,.*expected: another rank/,
    )
  })

  it('is read from bfloat16', () => {
    const exact = loadAdapter(adapters[0]!, linears)
    const rounded = loadAdapter(changed(same, {}, 'BF16'), linears)
    expect(rounded.values.every((value, i) => Math.abs(value - exact.values[i]!) <= Math.abs(value) / 128)).toBe(true)
  })

  it.each([
    { bias: 'all' },
    { modules_to_save: ['lm_head'] },
    { fan_in_fan_out: true },
    { lora_bias: true },
    { target_parameters: ['x'] },
    { layer_replication: [[0, 2]] },
    { peft_type: 'IA3' },
    { r: 0 },
    { target_modules: [] },
    { target_modules: null },
    { target_modules: ['c_attn'] },
  ])('is refused with %j, named', (change) => {
    expect(() => loadAdapter(changed(same, change), linears)).toThrow(
      new RegExp(`adapter_config\\.json: ${Object.keys(change)[0]}`),
    )
  })
})

describe('adapter_config.json', () => {
  it('needs only peft_type and target_modules', () => {
    const parsed = parsePeftConfig({ peft_type: 'LORA', target_modules: 'all-linear' }, 'x')
    expect(parsed.lora).toMatchObject({ rank: 8, alpha: 8, targetModules: 'all-linear' })
  })

  it('reads what it writes', () => {
    const peft = {
      lora: lora({ rankPattern: { q_proj: 3 }, initLoraWeights: 'gaussian' }),
      baseModel: null,
      taskType: null,
      hasScore: false,
    }
    expect(parsePeftConfig(JSON.parse(formatPeftConfig(peft)) as Record<string, unknown>, 'x')).toEqual(peft)
  })
})
