// Logits and input gradients of the tiny architectures, through the standard lowering in float64.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { backward } from '../../src/compiler/autodiff.js'
import { Graph } from '../../src/compiler/graph.js'
import { neg } from '../../src/compiler/ops/elementwise.js'
import { linearLogProb } from '../../src/compiler/ops/linear-log-prob.js'
import { quantLinear } from '../../src/compiler/ops/quant-linear.js'
import { reduceSum } from '../../src/compiler/ops/reduce.js'
import { scalar } from '../../src/compiler/ops/tensor.js'
import { parseModelConfig } from '../../src/models/config.js'
import { ModelContext, type WeightFormats } from '../../src/models/context.js'
import { architectures } from '../../src/models/index.js'
import { runOracle, type Tensor } from '../ops/oracle.js'
import { goldenDir } from './folder.js'
import { readTensors } from './safetensors.js'

const root = goldenDir('models', 'tiny')
const names = readdirSync(root, { withFileTypes: true })
  .filter((e) => e.isDirectory())
  .map((e) => e.name)

describe('tiny models in float64', () => {
  for (const name of names) {
    const json = JSON.parse(readFileSync(join(root, name, 'config.json'), 'utf8')) as { model_type: string }
    const architecture = architectures[json.model_type]
    if (!architecture) {
      it.skip(`${name}: model type ${json.model_type} is not in the index`)
      continue
    }
    it(name, async () => {
      const config = parseModelConfig(json)
      const weights = new Map<string, Tensor>()
      for (const file of readdirSync(join(root, name)).filter(
        (f) => f.startsWith('model') && f.endsWith('.safetensors'),
      ))
        for (const [key, tensor] of readTensors(join(root, name, file))) weights.set(key, tensor)
      const formats: WeightFormats = new Map(
        [...weights]
          .filter(([, t]) => t.shape.length === 2)
          .map(([key, t]) => [key, { format: 'f32', block: 32, shape: t.shape }]),
      )
      const io = JSON.parse(readFileSync(join(root, name, 'io.json'), 'utf8')) as { rows: number[][]; nll_mean: number }
      const expected = readTensors(join(root, name, 'io.safetensors'))
      const targets = io.rows.reduce((n, r) => n + r.length - 1, 0)

      // Both rows packed as two documents.
      const ids = io.rows.flat()
      const labels = io.rows.flatMap((r) => r.slice(1))
      const lossRows = io.rows.flatMap((r, i) => r.slice(1).map((_, j) => (i ? io.rows[0]!.length : 0) + j))
      const g = new Graph({ kernels: false, floatType: 'f64' })
      const ctx = new ModelContext(g, { config, formats })
      const h = architecture.build(ctx)
      const head = ctx.head()
      g.output(
        'logits',
        g.in('head', () => quantLinear(h, head)),
      )
      const m = g.leaf('labels', 'input', 'i32', ['M'])
      const rows = g.leaf('lossRows', 'input', 'i32', ['M'])
      const loss = g.in('head', () => neg(reduceSum(linearLogProb(h, head, m, rows).logps, [0])))
      g.output('loss', loss)
      const embedded = g.nodes
        .filter((n) => n.place.block === 'block.0')
        .flatMap((n) => n.inputs)
        .find((x) => x?.producer?.place.block === 'embed' && x.shape[1] === config.hiddenSize)!
      const d = backward(g, new Map([[loss, scalar(g, 1 / targets, 'f64')]]), [embedded])
      g.output('dEmbedded', d.get(embedded)!)

      const i32 = (data: number[]): Tensor => ({ dtype: 'i32', shape: [data.length], data })
      const feeds: Record<string, Tensor> = {
        inputIds: i32(ids),
        positionIds: i32(io.rows.flatMap((r) => r.map((_, i) => i))),
        cuSeqlens: i32([0, io.rows[0]!.length, ids.length]),
        labels: i32(labels),
        lossRows: i32(lossRows),
        ...Object.fromEntries(weights),
      }
      const result = await runOracle(g, feeds)
      const close = (actual: Float64Array, start: number, reference: Tensor, tolerance: number) => {
        let worst = 0
        for (let i = 0; i < reference.data.length; i++)
          worst = Math.max(worst, Math.abs(actual[start + i]! - reference.data[i]!))
        expect(worst).toBeLessThan(tolerance)
      }
      expect(Math.abs(result.loss![0]! / targets - io.nll_mean)).toBeLessThan(1e-5)
      let at = 0
      io.rows.forEach((row, i) => {
        close(result.logits!, at * config.vocabSize, expected.get(`logits.${i}`)!, 1e-4)
        const reference = expected.get(`grad_inputs_embeds.${i}`)!
        const top = Math.max(...Array.from(reference.data, Math.abs))
        close(result.dEmbedded!, at * config.hiddenSize, reference, 1e-4 * top)
        at += row.length
      })
    })
  }
})
