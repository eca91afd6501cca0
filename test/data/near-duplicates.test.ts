import { expect, it } from 'vitest'
import { clusterNearDuplicates, removeNearDuplicates } from '../../src/data/near-duplicates.js'
import { CounterRandom } from '../../src/data/random.js'

const random = new CounterRandom(4, 'words')
const words = (count: number): string[] => Array.from({ length: count }, () => `w${random.nextInt(5000)}`)

it('groups edited copies and keeps the first', () => {
  const originals = Array.from({ length: 200 }, () => words(60))
  const copies = originals.map((text, i) => text.map((word, j) => (j === i % 60 ? 'edited' : word)))
  const texts = [...originals, ...copies].map((list) => list.join(' '))
  // One word of 60 changes three of 58 shingles: similarity 0.90.
  expect([...clusterNearDuplicates(texts)]).toEqual([...originals.keys(), ...originals.keys()])
  expect(removeNearDuplicates(texts, (text) => text)).toEqual(texts.slice(0, 200))
})

it('finds most pairs near the threshold', () => {
  const pairs = Array.from({ length: 200 }, () => words(62))
  // The last 18 words differ: 42 of 78 shingles in common, similarity 0.54.
  const texts = [
    ...pairs.map((text) => text.join(' ')),
    ...pairs.map((text) => [...text.slice(0, 44), ...words(18)].join(' ')),
  ]
  const groups = clusterNearDuplicates(texts, { threshold: 0.5 })
  const found = groups.filter((group, i) => i >= 200 && group === i - 200).length
  expect(found).toBeGreaterThan(170)
})

it('treats short and empty texts as wholes', () => {
  expect([...clusterNearDuplicates(['yes', 'Yes!', 'no', '', '  '])]).toEqual([0, 0, 2, 3, 3])
})
