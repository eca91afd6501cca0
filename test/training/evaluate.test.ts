// Held-out loss and choice accuracy: independent of packing, answers compared behind one prompt.
import { expect, it } from 'vitest'
import { evaluateChoices, evaluateLoss, groupByTokens, packDocuments } from '../../src/training/evaluate.js'
import { toyDocuments } from './toy-loader.js'
import { createToyProgram, seeded } from './toy-program.js'

it('packs documents with restarted positions', () => {
  const batch = packDocuments([
    { ids: [5, 6, 7], labels: [6, 7, -100], row: 4 },
    { ids: [8, 9], labels: [-100, -100], row: 2 },
  ])
  expect([...batch.positionIds]).toEqual([0, 1, 2, 0, 1])
  expect([...batch.cuSeqlens]).toEqual([0, 3, 5])
  expect(batch.documents).toEqual([4, 2])
})

it('groups in order up to a number of tokens', () => {
  expect([...groupByTokens([3, 4, 9, 1, 1, 20, 2], (n) => n, 8)]).toEqual([[3, 4], [9], [1, 1], [20], [2]])
})

it('gives the held-out loss of one pack, whatever the packs', async () => {
  const program = createToyProgram()
  const documents = toyDocuments(20, 13, 5)
  const whole = await evaluateLoss(program, documents, { maxTokens: 10_000 })
  const small = await evaluateLoss(program, documents, { maxTokens: 7 })
  expect(small.tokens).toBe(whole.tokens)
  expect(small.loss).toBeCloseTo(whole.loss, 6)
})

it('scores choices of one and of several tokens as a document each would', async () => {
  const program = createToyProgram()
  program.params.fill(0.3)
  const random = seeded(11)
  const token = () => Math.floor(random() * 13)
  const rows = Array.from({ length: 12 }, (_, i) => ({
    prompt: [token(), token(), token()],
    choices: i % 2 ? [[1], [2], [3]] : [[token(), 4], [token()], [5, token(), token()]],
    answer: i % 3,
  }))
  const result = await evaluateChoices(program, rows, { maxTokens: 20 })
  let correct = 0
  for (const [index, { prompt, choices, answer }] of rows.entries()) {
    const expected = []
    for (const choice of choices) {
      const ids = [...prompt, ...choice]
      const labels = ids.map((_, i) => (i >= prompt.length - 1 && i + 1 < ids.length ? ids[i + 1]! : -100))
      const { values } = await program.score(packDocuments([{ ids, labels }]))
      expected.push(values.reduce((a, b) => a + b, 0))
    }
    for (const [c, value] of expected.entries()) expect(result.logps[index]![c]).toBeCloseTo(value, 5)
    const best = Math.max(...expected)
    if (expected[answer] === best && expected.filter((v) => v === best).length === 1) correct++
  }
  expect(result.correct).toBe(correct)
})
