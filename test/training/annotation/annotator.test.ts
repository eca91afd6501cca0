// An annotation that goes on: the order of pairs, undo, going on later, heads behind the screen, AI feedback, exports.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { compareAnswers, fileSource, RowEncoder, readComparisons } from '../../../src/data/index.js'
import { Annotator, type AnnotatorOptions } from '../../../src/training/annotation/annotator.js'
import { exportAnnotations } from '../../../src/training/annotation/export.js'
import { labelByReward, labelOf } from '../../../src/training/annotation/label-by-reward.js'
import { AnnotationLog, readAnnotations } from '../../../src/training/annotation/log.js'
import { toyTemplate, toyTokenizer } from '../../data/toy.js'
import { ruledPairs } from './pairs.js'

let folder: string
let path: string
let log: AnnotationLog
const open = () => new AnnotationLog(path, { name: 'r', base: 'b' })
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-annotate-'))
  path = join(folder, 'log.jsonl')
  log = open()
})
afterEach(() => {
  log.close()
  rmSync(folder, { recursive: true, force: true })
})

const { comparisons, differences, targets } = ruledPairs(300)
const annotatorOf = (options: Partial<AnnotatorOptions> = {}) => new Annotator({ comparisons, log, ...options })
const truth = new Map(comparisons.map(({ id }, i) => [id, targets[i] === 1 ? ('first' as const) : ('second' as const)]))
const answerRightly = (annotator: Annotator, count: number) => {
  for (let i = 0; i < count; i++) annotator.answer(truth.get(annotator.current!.id)!)
}

describe('pairs', () => {
  it('come in an order of the seed, each once, and the same ones are left when it is opened again', () => {
    const annotator = annotatorOf({ seed: 4 })
    const ids: string[] = []
    for (let i = 0; i < 120; i++) {
      ids.push(annotator.current!.id)
      annotator.answer('tie')
    }
    expect(new Set(ids).size).toBe(120)
    expect(ids).not.toEqual(comparisons.slice(0, 120).map(({ id }) => id))
    log.close()
    log = open()
    const again = annotatorOf({ seed: 4 })
    expect(again.status).toMatchObject({ answered: 120, left: 180, counts: { tie: 120 } })
    expect(ids).not.toContain(again.current!.id)
    for (let i = 0; i < 180; i++) again.answer('skip')
    expect(again.current).toBeUndefined()
    again.answer('first')
    expect(again.status).toMatchObject({ answered: 300, left: 0 })
  })

  it('come back with undo, and then the one that was shown', () => {
    const annotator = annotatorOf()
    const first = annotator.current!
    annotator.answer('bothBad')
    const second = annotator.current!
    annotator.answer('first')
    const third = annotator.current!
    expect(annotator.undo()).toMatchObject({ id: second.id, label: 'first' })
    expect(annotator.undo()).toMatchObject({ id: first.id, label: 'bothBad' })
    expect(annotator.undo()).toBeUndefined()
    expect(annotator.current).toBe(first)
    annotator.answer('tie')
    expect(annotator.current).toBe(second)
    annotator.answer('tie')
    expect(annotator.current).toBe(third)
    expect(readAnnotations(path).map(({ label }) => label)).toEqual(['tie', 'tie'])
  })

  it('of earlier data stay in the log and are not asked', () => {
    log.append(compareAnswers('gone', [' a', ' b'], { place: 'x' }), 'first', 'human', 0)
    const annotator = annotatorOf()
    expect(annotator.status).toMatchObject({ answered: 1, left: 300 })
    const shown = annotator.current
    expect(annotator.undo()).toMatchObject({ prompt: 'gone' })
    expect(annotator.current).toBe(shown)
  })
})

describe('the heads behind the screen', () => {
  it('choose once they have learned, and foresee more and more', async () => {
    let changes = 0
    const annotator = annotatorOf({ onChange: () => changes++ })
    answerRightly(annotator, 7)
    expect(annotator.status).toMatchObject({ order: 'random', agreement: undefined })
    annotator.learn(differences)
    await annotator.settled()
    answerRightly(annotator, 1) // this one was chosen before
    expect(annotator.status.order).toBe('active')
    for (let round = 0; round < 12; round++) {
      answerRightly(annotator, 8)
      await annotator.settled()
    }
    const { agreement } = annotator.status
    expect(agreement!.answers).toBe(50)
    expect(agreement!.share).toBeGreaterThan(0.6)
    expect(changes).toBeGreaterThan(100)
    // What they would say of all pairs, from a third of the answers
    await annotator.close()
  })

  it('leave the order alone where it is to be random', async () => {
    const [active, random] = [annotatorOf(), annotatorOf({ order: 'random' })]
    active.learn(differences)
    random.learn(differences)
    answerRightly(active, 20)
    await active.settled()
    const shuffled = active.nextRound(20).map(({ id }) => id)
    expect(random.nextRound(20).map(({ id }) => id)).not.toEqual(shuffled)
    expect(random.status.order).toBe('random')
    await active.close()
  })
})

const context = { tokenizer: toyTokenizer, template: toyTemplate, assistantTurns: 'all', appendEos: true } as const

describe('AI feedback', () => {
  it('prefers what scores more, and says who answered', async () => {
    const annotator = annotatorOf()
    const steps: number[] = []
    const added = await labelByReward({
      annotator,
      context,
      labels: 40,
      signal: new AbortController().signal,
      reward: { name: 'even', function: ({ completion }) => (/[02468]$/.test(completion) ? 1 : null) },
      onProgress: (done) => steps.push(done),
    })
    expect(added).toBe(40)
    expect(steps).toEqual([16, 32, 40])
    const answers = readAnnotations(path)
    for (const { first, label, by } of answers) {
      expect(by).toBe('rule:even')
      expect(label).toBe(/[02468]$/.test(String(first)) ? 'tie' : 'skip')
    }
    expect(labelOf(2, 1)).toBe('first')
    expect(labelOf(-2, 1)).toBe('second')
  })

  it('keeps what was answered before a failure, and goes on', async () => {
    const annotator = annotatorOf()
    let calls = 0
    const label = (fails: boolean) =>
      labelByReward({
        annotator,
        context,
        labels: 48,
        signal: new AbortController().signal,
        reward: {
          name: 'length',
          function({ completion }) {
            if (fails && ++calls > 40) throw new Error('the rule is out of order')
            return completion.length
          },
        },
      })
    await expect(label(true)).rejects.toThrow(/reward length: the rule is out of order\n {2}prompt \(row \d+\)/)
    expect(readAnnotations(path)).toHaveLength(16)
    expect(await label(false)).toBe(48)
    expect(annotator.status.answered).toBe(64)
  })

  it('is not given by a reward model', async () => {
    const labelled = labelByReward({
      annotator: annotatorOf(),
      context,
      signal: new AbortController().signal,
      reward: { model: 'somewhere' },
    })
    await expect(labelled).rejects.toThrow(/reward model does not annotate/)
  })
})

describe('exports', () => {
  it('are rows that stages learn from, ties and skipped ones left out and counted', async () => {
    const chat = compareAnswers(
      [{ role: 'user', content: 'hi' }],
      [[{ role: 'assistant', content: 'a' }], [{ role: 'assistant', content: 'b' }]],
      {
        place: 'chat',
      },
    )
    const all = [...comparisons.slice(0, 5), chat]
    const given = ['first', 'second', 'tie', 'bothBad', 'skip', 'first'] as const
    for (const [i, comparison] of all.entries()) log.append(comparison, given[i]!, 'human', 0)
    const answers = readAnnotations(path)
    const [preference, unpaired] = [join(folder, 'p.jsonl'), join(folder, 'u.jsonl')]
    writeFileSync(preference, 'old')
    expect(exportAnnotations(answers, preference, 'preference')).toEqual({ path: preference, rows: 3, leftOut: 3 })
    expect(exportAnnotations(answers, unpaired, 'unpaired-preference')).toEqual({ path: unpaired, rows: 8, leftOut: 2 })
    const back = await readComparisons(fileSource(preference))
    expect(back.map(({ id, known }) => [id, known])).toEqual([
      [all[0]!.id, 1],
      [all[1]!.id, 0],
      [chat.id, 1],
    ])
    const rows = readFileSync(unpaired, 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line))
    expect(rows.map(({ label }) => label)).toEqual([true, false, false, true, false, false, true, false])
    const encoder = new RowEncoder({ type: 'unpaired-preference', ...context, maxLength: 64 })
    for (const row of rows) expect(encoder.encode(row, 'here').documents).toHaveLength(1)
    expect(() => exportAnnotations(answers, join(folder, 'none', 'x.jsonl'), 'preference')).toThrow(/cannot be written/)
  })
})
