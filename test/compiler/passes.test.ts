// Passes, cutting, planning and printing on a two-layer model: what is emitted, and that no pass changes a value.
import { describe, expect, it } from 'vitest'
import { compile } from '../../src/compiler/compile.js'
import { Graph } from '../../src/compiler/graph.js'
import { adamW } from '../../src/compiler/ops/adamw.js'
import * as e from '../../src/compiler/ops/elementwise.js'
import { cutGraph } from '../../src/compiler/passes/cut.js'
import { placeBuffers } from '../../src/compiler/passes/place-buffers.js'
import { removeDeadCode, shareSubexpressions, simplify } from '../../src/compiler/passes/simplify.js'
import { printSegment } from '../../src/compiler/segment.js'
import { verify } from '../../src/compiler/verify.js'
import type { LinearAdapter } from '../../src/models/adapter-slot.js'
import { parseModelConfig } from '../../src/models/config.js'
import { pagedGraph } from '../../src/models/graphs.js'
import { architectureOf } from '../../src/models/index.js'
import { tokenMean } from '../../src/training/objectives/token-mean.js'
import { trainGraph } from '../../src/training/step-graph.js'

const config = parseModelConfig({
  model_type: 'llama',
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 256,
  tie_word_embeddings: true,
})

const architecture = architectureOf('llama')
const formats = new Map(
  [...architecture.linears(config), { path: 'model.embed_tokens', outFeatures: 256, inFeatures: 64 }].map((l) => [
    `${l.path}.weight`,
    { format: 'int4' as const, block: 32, shape: [l.outFeatures, l.inFeatures] },
  ]),
)

function traced(kernels = true) {
  const linears = new Map<string, LinearAdapter>()
  let offset = 0
  for (const { path, inFeatures, outFeatures } of architecture.linears(config)) {
    const length = 4 * (inFeatures + outFeatures)
    linears.set(path, { path, rank: 4, scaling: 2, offset, length, bOffset: 4 * inFeatures })
    offset += length
  }
  return trainGraph(
    architecture,
    { kernels, activationType: 'bf16', strict: false },
    { config, formats, adapter: { linears, dropout: 0 } },
    tokenMean('crossEntropy'),
  )
}
const dims = { N: 256, M: 256, S: 3 }

describe('compile', () => {
  it('equal blocks share sessions: embed, block, last block, head, and the two kinds of backward', () => {
    const compiled = compile(traced(), { dims })
    expect(compiled.steps.map((s) => s.name)).toEqual([
      'embed',
      'block.0',
      'block.1',
      'block.2',
      'block.3',
      'head',
      'block.3.backward',
      'block.2.backward',
      'block.1.backward',
      'block.0.backward',
    ])
    expect(compiled.steps.map((s) => s.model)).toEqual([0, 1, 1, 1, 2, 3, 4, 4, 4, 5])
  })

  it('the first block asks for no gradient of its input', () => {
    const { models, steps } = compile(traced(), { dims })
    const first = models[steps.at(-1)!.model]!.text
    // q, k and v of block 0 give their adapters' gradients only.
    expect(first.match(/_, o\d+: f32\[\d+\] = QuantLinearGrad/g)).toHaveLength(3)
  })

  it('computes logits once for loss and gradient', () => {
    const { models, steps } = compile(traced(), { dims })
    const head = models[steps.find((s) => s.name === 'head')!.model]!.text
    expect(head).toContain('LinearLogProbFused_bf16(')
    expect(head).not.toContain('LinearLogProbGrad')
  })

  it('recomputation trades memory for work, and the policy is kept', () => {
    const all = compile(traced(), { dims, recompute: 'all' })
    const auto = compile(traced(), { dims, recompute: 'auto' })
    const none = compile(traced(), { dims, recompute: 'none' })
    expect(all.workspaceBytes).toBeLessThan(auto.workspaceBytes)
    expect(auto.workspaceBytes).toBeLessThanOrEqual(none.workspaceBytes)
    expect(all.flops).toBeGreaterThan(auto.flops)
    expect(auto.flops).toBeGreaterThanOrEqual(none.flops)
    const tight = compile(traced(), { dims, memoryBudgetBytes: 100_000 })
    expect(tight.workspaceBytes).toBeLessThan(auto.workspaceBytes)
  })

  it('prints the head of a step', () => {
    const { models, steps } = compile(traced(), { dims })
    expect(models[steps[0]!.model]!.text).toMatchInlineSnapshot(`
      "(i0: i32[N], i1: i32[N], i2: u8[256, 32], i3: f16[256, 2], i4: f16[256, 2]) -> (o0: f32[N, 8], o1: f32[N, 8], o2: f32[N, 64], o3: bf16[N, 64])
        v0: f32[N] = Cast(i0) to=f32
        v1: i64[1] = Constant() value=i64[1](1)
        v2: f32[N, 1] = Unsqueeze(v0, v1)
        v3: f32[1, 8] = Constant() value=f32[1, 8](1, 0.31622776601683794, 0.1, 0.03162277660168379, 0.01, 0.0031622776601683794, 0.001, 0.00031622776601683794)
        v4: f32[N, 8] = Mul(v2, v3)
        o0: f32[N, 8] = Cos(v4)
        o1: f32[N, 8] = Sin(v4)
        o2: f32[N, 64] = Embedding(i1, i2, i3, i4, -) format=2 block=32
        o3: bf16[N, 64] = Convert_bf16(o2)"
    `)
  })
})

describe('placement', () => {
  it('values that live at the same time never overlap', () => {
    const graph = traced()
    simplify(graph)
    const segments = cutGraph(graph, 'blocks')
    const bound = new Set([...graph.leaves, ...graph.outputs.values(), ...graph.updates.values()])
    const { values, byteLength } = placeBuffers(segments, dims, bound)
    const placed = [...values.values()]
    expect(placed.length).toBeGreaterThan(10)
    for (const [i, a] of placed.entries())
      for (const b of placed.slice(i + 1)) {
        const inTime = a.firstStep <= b.lastStep && b.firstStep <= a.lastStep
        const inSpace = a.byteOffset < b.byteOffset + b.byteLength && b.byteOffset < a.byteOffset + a.byteLength
        expect(inTime && inSpace).toBe(false)
      }
    const sum = placed.reduce((n, p) => n + p.byteLength, 0)
    expect(byteLength).toBeLessThan(sum)
  })
})

describe('simplify', () => {
  it('shares equal expressions and drops what nothing reads', () => {
    const g = new Graph({ kernels: false })
    const x = g.leaf('x', 'input', 'f32', ['N'])
    const sum = e.add(e.exp(x), e.exp(x))
    e.log(sum)
    g.output('y', sum)
    shareSubexpressions(g)
    removeDeadCode(g)
    expect(g.nodes.map((n) => n.op.opType)).toEqual(['Exp', 'Add'])
    expect(g.nodes[1]!.inputs[0]).toBe(g.nodes[1]!.inputs[1])
  })
})

/** Our operators of one block of a graph that serves, in order. */
function servedBlock(role: 'prefill' | 'decode', strict: boolean): string[] {
  const paged = { role, cacheType: 'bf16', blocks: 8, blocksPerSequence: 4, slots: null } as const
  const options = { kernels: true, activationType: strict ? 'f32' : 'bf16', strict } as const
  const graph = pagedGraph(architecture, options, { config, formats, paged })
  simplify(graph)
  return graph.nodes.flatMap(({ op, place }) =>
    place.block === 'block.1' && op.domain === 'espalier' ? [op.opType] : [],
  )
}

describe('fusion', () => {
  it('a block that decodes is five nodes', () => {
    expect(servedBlock('decode', false)).toEqual([
      'QuantLinearGroup',
      'PagedAttention',
      'QuantLinear',
      'QuantLinearGroup',
      'QuantLinear',
    ])
  })

  it.each([
    ['prefill', false],
    ['decode', true],
  ] as const)('the linears of %s (strict: %s) take x as it is', (role, strict) => {
    const ops = servedBlock(role, strict)
    expect(ops.filter((op) => op === 'RmsNorm')).toHaveLength(2)
    expect(ops.filter((op) => op === 'QuantLinear')).toHaveLength(7)
    expect(ops).toContain('SwiGlu')
  })
})

describe('verify', () => {
  it('refuses a read of memory that was overwritten', () => {
    const g = new Graph({ kernels: true })
    const flat = (name: string) => g.leaf(name, 'state', 'f32', [8])
    const state = { params: flat('p'), grads: flat('g'), m: flat('m'), v: flat('v') }
    adamW(
      state,
      g.leaf('hyper', 'input', 'f32', [8]),
      g.leaf('groups', 'input', 'i64', [1, 2]),
      g.leaf('gh', 'input', 'f32', [1, 2]),
      [],
    )
    g.output('late', e.exp(state.params))
    const segments = cutGraph(g, 'none')
    expect(() => verify(g, segments)).toThrow(/Exp.*input 0 reads memory that .*AdamW.* has overwritten/)
  })

  it('prints stable text', () => {
    const g = new Graph({ kernels: true })
    const x = g.leaf('x', 'input', 'f32', ['N', 4])
    g.output('y', e.mul(e.sigmoid(x), x))
    expect(printSegment(cutGraph(g, 'none')[0]!)).toMatchInlineSnapshot(`
      "(i0: f32[N, 4]) -> (o0: f32[N, 4])
        v0: f32[N, 4] = Sigmoid(i0)
        o0: f32[N, 4] = Mul(v0, i0)"
    `)
  })
})

describe('graph', () => {
  it('a leaf keeps its type', () => {
    const g = new Graph({ kernels: true })
    g.leaf('x', 'input', 'f32', ['N'])
    expect(() => g.leaf('x', 'input', 'i32', ['N'])).toThrow('x was declared as f32[N] and is now asked for as i32[N]')
  })
  it('shapes that do not broadcast are refused by name', () => {
    const g = new Graph({ kernels: true })
    expect(() => e.add(g.leaf('x', 'input', 'f32', [3]), g.leaf('y', 'input', 'f32', [4]))).toThrow(
      'Add: shapes [3] and [4] do not broadcast',
    )
  })
})
