// Praise or complaint? Short remarks written for this project, small enough to ship and easy enough for a tiny model of bytes:
// what the demo trains on where no network can be reached. Held-out rows pair subjects and predicates that training has not paired.
import { defineDataset, permutation, type Row } from 'espalier'

// biome-ignore format: a list to read
const subjects = [
  'The soup', 'The bread', 'The tea', 'The garden', 'The museum', 'The harbour', 'The train', 'The hotel', 'The room',
  'The film', 'The concert', 'The lecture', 'The market', 'The beach', 'The staff', 'The weather', 'The music', 'The cake',
]

// biome-ignore format: a list to read
const praise = [
  'was lovely', 'was a delight', 'made us smile', 'was better than ever', 'is worth every penny', 'was simply perfect',
  'charmed everyone', 'was a pleasure', 'deserves its fame', 'was wonderful', 'is my favourite', 'cheered us up',
]

// biome-ignore format: a list to read
const complaint = [
  'was awful', 'was a letdown', 'made us leave', 'was worse than ever', 'is a waste of money', 'was simply dreadful',
  'annoyed everyone', 'was a nuisance', 'has lost its charm', 'was terrible', 'is best avoided', 'ruined our day',
]

const heldOutRows = 80

function makeRows(): Row[] {
  const sides: [string[], string][] = [
    [praise, '+'],
    [complaint, '-'],
  ]
  return sides.flatMap(([predicates, answer]) =>
    subjects.flatMap((subject) =>
      predicates.map((predicate) => ({ prompt: `${subject} ${predicate}. `, completion: answer })),
    ),
  )
}

export default defineDataset({
  name: 'tiny-corpus',
  description: 'Short remarks, + for praise and - for a complaint',
  source: 'written for this project',
  license: 'Apache-2.0, as the project',
  type: 'prompt-completion',
  choices: ['+', '-'],
  load({ seed }) {
    const rows = makeRows()
    const order = Array.from(permutation(rows.length, seed, 'tiny-corpus'), (i) => rows[i]!)
    // As many of each answer on the held-out side.
    const heldOut = ['+', '-'].flatMap((answer) =>
      order.filter(({ completion }) => completion === answer).slice(0, heldOutRows / 2),
    )
    return { heldOut, train: order.filter((row) => !heldOut.includes(row)) }
  },
})
