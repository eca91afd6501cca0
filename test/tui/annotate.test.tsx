// Annotation on a screen and in lines: what is shown, what keys do, what does not fit, what goes wrong.
import { describe, expect, it } from 'vitest'
import type { AnnotatorStatus, Label } from '../../src/index.js'
import { AnnotateView, openAnnotateScreen } from '../../src/tui/annotate.js'
import { annotateInLines } from '../../src/tui/annotate-lines.js'
import { type AnnotateBackend, describeStatus, type ShownPair } from '../../src/tui/annotate-state.js'
import { draw, terminal } from './fake-terminal.js'

const pairOf = (i: number): ShownPair => ({ prompt: `Prompt ${i}:`, first: `good ${i}`, second: `bad ${i}` })

interface Fake extends AnnotateBackend {
  given: Label[]
  say(notice: string): void
}

function fake(pairs = [pairOf(1), pairOf(2), pairOf(3)], status: Partial<AnnotatorStatus> = {}): Fake {
  const given: Label[] = []
  const listeners = new Set<() => void>()
  let notice: string | undefined
  return {
    name: 'tones',
    log: 'annotations/tones.jsonl',
    given,
    current: () => pairs[given.length],
    status() {
      const counts: Record<Label, number> = { first: 0, second: 0, tie: 0, bothBad: 0, skip: 0 }
      for (const label of given) counts[label]++
      const left = pairs.length - given.length
      return { answered: given.length, left, counts, order: 'active', agreement: undefined, ...status }
    },
    notice: () => notice,
    answer: (label) => void given.push(label),
    undo: () => given.pop(),
    onChange(listener) {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
    say(text) {
      notice = text
      for (const listener of listeners) listener()
    },
  }
}

describe('on a screen', () => {
  it('shows both answers side by side, or one below the other where it is narrow', () => {
    expect(draw(<AnnotateView backend={fake()} columns={76} rows={20} />, 76)).toMatchSnapshot()
    expect(draw(<AnnotateView backend={fake()} columns={40} rows={20} />, 40)).toMatchSnapshot()
  })

  it('takes one key for an answer, the arrows too, takes it back, and leaves with q', async () => {
    const backend = fake()
    const screen = terminal()
    const open = openAnnotateScreen(backend, screen)
    await screen.shows('Prompt 1:')
    await screen.key('x')
    await screen.key('1')
    await screen.shows('Prompt 2:')
    await screen.key('\x1b[C')
    await screen.shows('1 first, 1 second')
    expect(backend.given).toEqual(['first', 'second'])
    screen.forget()
    await screen.key('u')
    await screen.shows('taken back: second')
    await screen.key('b')
    await screen.key('T')
    await screen.shows('All pairs have an answer. The log is annotations/tones.jsonl.')
    await screen.key('1')
    expect(backend.given).toEqual(['first', 'bothBad', 'tie'])
    await screen.key('q')
    await open
  })

  it('tells what goes on behind it, and ends with Ctrl-C or the signal', async () => {
    const backend = fake()
    const screen = terminal()
    const open = openAnnotateScreen(backend, screen)
    await screen.shows('Prompt 1:')
    backend.say('reading the pairs 41 %')
    await screen.shows('reading the pairs 41 %')
    await screen.key('\x03')
    await open
    const controller = new AbortController()
    const again = openAnnotateScreen(backend, { ...terminal(), signal: controller.signal })
    controller.abort()
    await again
  })

  it('scrolls through what is higher than it, from the top again for the next pair', async () => {
    const long = Array.from({ length: 60 }, (_, i) => `line ${i}.`).join('\n')
    const screen = terminal()
    const open = openAnnotateScreen(fake([{ ...pairOf(1), first: `${long}\x1b[2J` }, pairOf(2)]), screen)
    await screen.shows('line 5.')
    await screen.shows('↓')
    expect(screen.shown()).not.toContain('line 40.')
    expect(screen.shown()).not.toContain('\x1b[2J\n')
    screen.forget()
    for (let page = 0; page < 6; page++) await screen.key('\x1b[6~')
    await screen.shows('line 59.')
    screen.forget()
    await screen.key('2')
    await screen.shows('Prompt 2:')
    await screen.key('q')
    await open
  })

  it('shows an answer that could not be written, and keeps the pair', async () => {
    const backend = fake()
    const screen = terminal()
    const answer = () => {
      throw new Error('log.jsonl: the answer could not be written (disk full)')
    }
    const open = openAnnotateScreen({ ...backend, answer }, screen)
    await screen.shows('Prompt 1:')
    screen.forget()
    await screen.key('1')
    await screen.shows('could not be written (disk full)')
    expect(screen.shown()).not.toContain('Prompt 2:')
    await screen.key('q')
    await open
  })
})

describe('in lines', () => {
  const talk = async (backend: AnnotateBackend, keys: string[], signal?: AbortSignal) => {
    let out = ''
    const said: string[] = []
    await annotateInLines(backend, {
      lines: (async function* () {
        yield* keys
      })(),
      write: (text) => {
        out += text
      },
      say: (text) => void said.push(text),
      ...(signal ? { signal } : {}),
    })
    return { out, said }
  }

  it('takes a key per line until all have an answer', async () => {
    const backend = fake()
    const { out, said } = await talk(backend, ['1', 'what?', 'u', 'S', ' 2 ', 't', 'never read'])
    expect(backend.given).toEqual(['skip', 'second', 'tie'])
    expect(out).toContain('prompt: Prompt 1:\n1: good 1\n2: bad 1\n\n')
    expect(said).toContainEqual(expect.stringMatching(/^"what\?" is no key: 1 first · 2 second/))
    expect(said).toContainEqual(expect.stringMatching(/^taken back: first/))
    expect(said.at(-1)).toMatch(/^all pairs have an answer: 3 answered/)
  })

  it('ends at the end of the lines, at q, and at the signal', async () => {
    expect((await talk(fake(), ['1'])).said.at(-1)).toContain('2 left')
    const backend = fake()
    await talk(backend, ['q', '1'])
    await talk(backend, ['1'], AbortSignal.abort())
    expect(backend.given).toEqual([])
    expect((await talk(fake([]), ['1'])).said.at(-1)).toMatch(/^all pairs/)
  })
})

it('says how far it is', () => {
  const counts = { first: 4, second: 0, tie: 1, bothBad: 2, skip: 0 }
  const agreement = { share: 0.72, answers: 50 }
  expect(describeStatus({ answered: 7, left: 20, counts, order: 'active', agreement })).toBe(
    '7 answered (4 first, 1 tie, 2 both bad) · 20 left · heads foresaw 72 % of the last 50',
  )
})
