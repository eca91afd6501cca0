// Features of completions on the real base: a vector per document that the others of its pack do not touch, equal at full
// depth to the mean of the hidden states that the session itself gives.
import { expect, it } from 'vitest'
import { InferenceSession, packSequences } from '../../../src/inference/session.js'
import { completionFeatures, defaultDepths } from '../../../src/training/annotation/features.js'
import { useReferenceBase } from '../../models/reference-base.js'

const loaded = useReferenceBase('features of completions')

const documents = [
  { inputIds: [504, 1719, 282, 260, 905, 314], completionStart: 3 },
  { inputIds: [339, 744, 338, 314], completionStart: 1 },
  { inputIds: [28, 284, 260], completionStart: 0 },
]

it('is the mean over the completion, whatever else is in the pack', async ({ skip }) => {
  const base = loaded()
  if (!base) return skip()
  const { hiddenSize, numHiddenLayers } = base.config
  const depths = [1, numHiddenLayers]
  const together = await completionFeatures(base, documents, { depths, precision: 'strict' })
  const alone = await completionFeatures(base, documents, { depths, precision: 'strict', packTokens: 1 })
  for (const [i, vector] of together.entries()) {
    expect(vector).toHaveLength(2 * hiddenSize)
    expect(Math.max(...vector.map((x, f) => Math.abs(x - alone[i]![f]!)))).toBeLessThan(1e-4)
  }
  const session = await InferenceSession.open({ base, precision: 'strict' })
  try {
    const { inputIds, completionStart } = documents[0]!
    const hidden = await session.hidden(packSequences([inputIds]))
    for (const f of [0, 17, hiddenSize - 1]) {
      let sum = 0
      for (let t = completionStart; t < inputIds.length; t++) sum += hidden[t * hiddenSize + f]!
      expect(together[0]![hiddenSize + f]).toBeCloseTo(sum / (inputIds.length - completionStart), 4)
    }
  } finally {
    session.close()
  }
}, 120_000)

it('refuses a document without a completion, and depths that the base does not have', async ({ skip }) => {
  const base = loaded()
  if (!base) return skip()
  await expect(completionFeatures(base, [{ inputIds: [1, 2], completionStart: 2 }])).rejects.toThrow(
    /document 1 has no completion token/,
  )
  await expect(completionFeatures(base, documents, { depths: [31] })).rejects.toThrow(/this base has 30 blocks/)
  expect(defaultDepths(30)).toEqual([1, 12])
})
