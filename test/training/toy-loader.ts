// Steps over a fixed set of random documents, reshuffled every epoch from its state: stands in for the data room's
// loader where a test is about the loop.
import { packDocuments } from '../../src/training/evaluate.js'
import type { LoaderStep, StepLoader } from '../../src/training/loop.js'
import { seeded } from './toy-program.js'

export interface ToyDocument {
  ids: number[]
  labels: number[]
  row: number
}

export function toyDocuments(count: number, vocabSize: number, seed: number): ToyDocument[] {
  const random = seeded(seed)
  return Array.from({ length: count }, (_, row) => {
    const ids = Array.from({ length: 3 + Math.floor(random() * 9) }, () => Math.floor(random() * vocabSize))
    const labels = ids.map((_, i) => (i + 1 < ids.length && random() < 0.8 ? ids[i + 1]! : -100))
    labels[0] = ids[1]!
    return { ids, labels, row }
  })
}

export function createToyLoader(
  documents: ToyDocument[],
  options: { microBatchSize: number; gradientAccumulationSteps: number; seed?: number; shuffle?: boolean },
): StepLoader {
  let step = 0
  const { microBatchSize, gradientAccumulationSteps } = options
  const perStep = microBatchSize * gradientAccumulationSteps
  const orderOf = (epoch: number) => {
    const order = documents.map((_, i) => i)
    if (options.shuffle === false) return order
    const random = seeded((options.seed ?? 0) * 1000 + epoch)
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1))
      ;[order[i], order[j]] = [order[j]!, order[i]!]
    }
    return order
  }
  return {
    async next(): Promise<LoaderStep> {
      const chosen = Array.from({ length: perStep }, (_, i) => {
        const position = step * perStep + i
        return documents[orderOf(Math.floor(position / documents.length))[position % documents.length]!]!
      })
      step++
      const microBatches = Array.from({ length: gradientAccumulationSteps }, (_, m) =>
        packDocuments(chosen.slice(m * microBatchSize, (m + 1) * microBatchSize)),
      )
      const targetTokens = chosen.reduce((sum, { labels }) => sum + labels.filter((label) => label !== -100).length, 0)
      return { microBatches, targetTokens, epoch: (step * perStep) / documents.length, step }
    },
    getState: () => ({ step }),
    setState(state) {
      step = (state as { step: number }).step
    },
  }
}
