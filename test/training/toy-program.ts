// A training program in plain arithmetic, for tests of what runs around one: a low-rank bigram model,
// logits[t] = base[id] + B(A[:, id]), with real gradients and torch's AdamW. Parameters fp32, sums in float64.
import type { AdapterLayout, MicroBatch, TrainProgram } from '../../src/training/program.js'

export interface ToyOptions {
  vocabSize?: number
  rank?: number
  seed?: number
  /** Multiplies the logits of documents that begin with this token by NaN. */
  poisonToken?: number
  /** Runs before each accumulate. */
  delay?(): Promise<void>
}

/** Mulberry32: a small seeded generator in [0, 1). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

export function createToyProgram(options: ToyOptions = {}): TrainProgram & { updates: number } {
  const vocabSize = options.vocabSize ?? 13
  const rank = options.rank ?? 3
  const random = seeded(options.seed ?? 1)
  const base = Float32Array.from({ length: vocabSize * vocabSize }, () => random() - 0.5)
  const sizeA = rank * vocabSize
  // As in the real layout, a gap for alignment lies between the tensors
  const offsetB = Math.ceil(sizeA / 16) * 16
  const layout: AdapterLayout = {
    tensors: [
      { name: 'base_model.model.toy.lora_A.weight', path: 'toy', kind: 'loraA', shape: [rank, vocabSize], offset: 0 },
      {
        name: 'base_model.model.toy.lora_B.weight',
        path: 'toy',
        kind: 'loraB',
        shape: [vocabSize, rank],
        offset: offsetB,
      },
    ],
    length: offsetB + vocabSize * rank,
  }
  const flat = () => new Float32Array(layout.length)
  const [params, adamM, adamV, grads] = [flat(), flat(), flat(), flat()]
  for (let i = 0; i < sizeA; i++) params[i] = random() - 0.5
  const sums = new Float64Array(layout.length)

  /** Softmax of the logits behind `id` → probabilities [V] and the log of their normaliser. */
  const logitsOf = (id: number, scale: number, adapter: boolean) => {
    const logits = new Float64Array(vocabSize)
    for (let v = 0; v < vocabSize; v++) {
      let value = base[id * vocabSize + v]!
      if (adapter) for (let r = 0; r < rank; r++) value += params[offsetB + v * rank + r]! * params[r * vocabSize + id]!
      logits[v] = value * scale
    }
    const top = Math.max(...logits)
    const lse = top + Math.log(logits.reduce((sum, x) => sum + Math.exp(x - top), 0))
    return { logits, lse }
  }

  const targetsOf = (batch: MicroBatch) => {
    const scales = new Float64Array(batch.inputIds.length).fill(1)
    for (let d = 0; d + 1 < batch.cuSeqlens.length; d++) {
      const from = batch.cuSeqlens[d]!
      if (batch.inputIds[from] === options.poisonToken) scales.fill(Number.NaN, from, batch.cuSeqlens[d + 1]!)
    }
    if (batch.targets) {
      return Array.from(batch.targets.rows, (row, m) => ({
        id: batch.inputIds[row]!,
        label: batch.targets!.labels[m]!,
        scale: scales[row]!,
      }))
    }
    return Array.from(batch.labels, (label, row) => ({ id: batch.inputIds[row]!, label, scale: scales[row]! })).filter(
      ({ label }) => label !== -100,
    )
  }

  return {
    layout,
    params,
    adamM,
    adamV,
    grads,
    updates: 0,
    plannedBytes: 4 * 4 * layout.length,
    flopsPerToken: () => 6 * rank * vocabSize,
    async accumulate(batch, { first, lossScale }) {
      await options.delay?.()
      if (first) sums.fill(0)
      let nllSum = 0
      const targets = targetsOf(batch)
      for (const { id, label, scale } of targets) {
        const { logits, lse } = logitsOf(id, scale, true)
        nllSum += lse - logits[label]!
        for (let v = 0; v < vocabSize; v++) {
          const d = (Math.exp(logits[v]! - lse) - (v === label ? 1 : 0)) * lossScale
          for (let r = 0; r < rank; r++) {
            sums[offsetB + v * rank + r]! += d * params[r * vocabSize + id]!
            sums[r * vocabSize + id]! += d * params[offsetB + v * rank + r]!
          }
        }
      }
      grads.set(sums)
      return { lossSum: nllSum * lossScale, tokens: targets.length, outputs: {} }
    },
    async update({ learningRate, beta1, beta2, epsilon, weightDecay, maxGradNorm, step }) {
      let squares = 0
      for (const g of grads) squares += g * g
      const gradNorm = Math.sqrt(squares)
      if (!Number.isFinite(gradNorm)) return { gradNorm }
      this.updates++
      const clip = maxGradNorm > 0 ? Math.min(1, maxGradNorm / (gradNorm + 1e-6)) : 1
      for (let i = 0; i < params.length; i++) {
        const g = grads[i]! * clip
        adamM[i] = beta1 * adamM[i]! + (1 - beta1) * g
        adamV[i] = beta2 * adamV[i]! + (1 - beta2) * g * g
        const denominator = Math.sqrt(adamV[i]!) / Math.sqrt(1 - beta2 ** step) + epsilon
        params[i] =
          params[i]! * (1 - learningRate * weightDecay) -
          (learningRate / (1 - beta1 ** step)) * (adamM[i]! / denominator)
      }
      return { gradNorm }
    },
    evaluate(batch, { lossScale }) {
      return this.accumulate(batch, { first: false, lossScale, rngStep: 0 })
    },
    async score(batch, { model = 'adapter' } = {}) {
      const targets = targetsOf(batch)
      const values = Float32Array.from(targets, ({ id, label, scale }) => {
        const { logits, lse } = logitsOf(id, scale, model === 'adapter')
        return logits[label]! - lse
      })
      return { values }
    },
    close() {},
  }
}
