// The log of annotation: what is on disk after each answer, after a kill, and after damage.
import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { CounterRandom, compareAnswers } from '../../../src/data/index.js'
import { AnnotationLog, AnnotationLogError, readAnnotations } from '../../../src/training/annotation/log.js'
import { mutate } from '../../data/mutate.js'

const header = { name: 'r', base: 'b' }
const pair = (i: number) => compareAnswers(`p${i}`, [` a${i}`, ` b${i}`], { place: `row ${i}` })
let folder: string
let path: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'espalier-log-'))
  path = join(folder, 'deep', 'log.jsonl')
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

/** Writes answers to the first pairs. */
function answered(count: number): void {
  const log = new AnnotationLog(path, header)
  for (let i = 0; i < count; i++) log.append(pair(i), i % 2 === 0 ? 'first' : 'tie', 'human', 1.23456)
  log.close()
}

describe('answers', () => {
  it('are on disk when append returns, and can be read without the data', () => {
    const log = new AnnotationLog(path, header)
    log.append(pair(0), 'first', 'human', 1.23456)
    expect(readAnnotations(path)).toEqual([
      expect.objectContaining({ ...pick(pair(0)), label: 'first', by: 'human', seconds: 1.235 }),
    ])
    log.close()
  })
  const pick = ({ id, prompt, first, second }: ReturnType<typeof pair>) => ({ id, prompt, first, second })

  it('are taken back one by one, by lines that are added', () => {
    answered(3)
    const log = new AnnotationLog(path, header)
    const size = statSync(path).size
    expect(log.undo()).toMatchObject({ id: pair(2).id })
    expect(log.undo()).toMatchObject({ id: pair(1).id })
    expect(statSync(path).size).toBeGreaterThan(size)
    log.append(pair(1), 'second', 'rule:valence', 0)
    expect(log.standing.map(({ label }) => label)).toEqual(['first', 'second'])
    log.close()
    expect(readAnnotations(path)).toMatchObject([{ id: pair(0).id }, { id: pair(1).id, by: 'rule:valence' }])
    const again = new AnnotationLog(path, header)
    while (again.undo());
    expect(again.undo()).toBeUndefined()
    again.close()
    expect(readAnnotations(path)).toEqual([])
  })
})

describe('a log that was cut', () => {
  it('anywhere goes on behind its last whole answer', () => {
    answered(3)
    const whole = readFileSync(path)
    const ends = [...whole.entries()].flatMap(([i, byte]) => (byte === 10 ? [i + 1] : []))
    for (let size = whole.length; size >= 0; size -= size > 40 ? 7 : 1) {
      writeFileSync(path, whole.subarray(0, size))
      const log = new AnnotationLog(path, header)
      const known = ends.filter((end) => end <= size).length
      expect(log.standing).toHaveLength(Math.max(0, known - 1))
      expect(log.cutBytes).toBe(size - (ends.filter((end) => end <= size).at(-1) ?? 0))
      log.append(pair(9), 'skip', 'human', 0)
      log.close()
      expect(readAnnotations(path).at(-1)).toMatchObject({ id: pair(9).id })
    }
  })

  it('is read up to the cut by a reader', () => {
    answered(2)
    truncateSync(path, statSync(path).size - 5)
    expect(readAnnotations(path)).toHaveLength(1)
  })
})

describe('a file that is no log', () => {
  it.each([
    ['text without a line end', 'my notes'],
    ['text', 'my notes\n'],
    ['other JSON', '{"type":"run"}\n'],
    ['answers without a beginning', '{"type":"undo","id":"x","at":"2026-01-01T00:00:00Z"}\n'],
  ])('of %s is refused and left alone', (_, content) => {
    answered(0)
    writeFileSync(path, content)
    expect(() => new AnnotationLog(path, header)).toThrow(AnnotationLogError)
    expect(readFileSync(path, 'utf8')).toBe(content)
  })

  it('names the line that is damaged', () => {
    answered(3)
    const lines = readFileSync(path, 'utf8').split('\n')
    writeFileSync(path, [...lines.slice(0, 2), lines[2]!.replace('"tie"', '"perhaps"'), ...lines.slice(3)].join('\n'))
    expect(() => readAnnotations(path)).toThrow(`${path}:3: label`)
    writeFileSync(path, [...lines.slice(0, 2), lines[2]!.slice(9), ...lines.slice(3)].join('\n'))
    expect(() => readAnnotations(path)).toThrow(/:3: is no JSON .*remove the line/)
    writeFileSync(path, lines.join('\n'))
    appendFileSync(path, `{"type":"undo","id":"${pair(0).id}","at":"2026-01-01T00:00:00Z"}\n`)
    expect(() => readAnnotations(path)).toThrow(/:5: takes back .* not the last answer/)
    appendFileSync(path, lines[0]!)
    expect(() => readAnnotations(join(folder, 'none'))).toThrow(/cannot be read/)
  })

  it('or a damaged one never gives anything but answers or an error that names the file', () => {
    answered(6)
    const original = readFileSync(path)
    const random = new CounterRandom(11, 'damage')
    let refused = 0
    for (let i = 0; i < 400; i++) {
      writeFileSync(path, mutate(original, random))
      try {
        for (const { id, label } of readAnnotations(path))
          expect([id.length > 0, label.length > 0]).toEqual([true, true])
      } catch (error) {
        expect(error).toBeInstanceOf(AnnotationLogError)
        expect((error as Error).message).toContain(path)
        refused++
      }
    }
    expect(refused).toBeGreaterThan(50)
    expect(existsSync(path)).toBe(true)
  })
})
