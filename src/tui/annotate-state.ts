// What an annotation screen knows: the pair, what the keys mean, and what there is to say. The terminal and the lines share it.
import type { AnnotatorStatus, Label } from '../index.js'
import { percent } from './text.js'

export interface ShownPair {
  readonly prompt: string
  readonly first: string
  readonly second: string
}

/** What is annotated. */
export interface AnnotateBackend {
  readonly name: string
  /** File of the log. */
  readonly log: string
  /** undefined: all pairs have an answer. */
  current(): ShownPair | undefined
  status(): AnnotatorStatus
  /** What goes on behind the screen, or the last warning; one line. */
  notice(): string | undefined
  /** @throws where the answer could not be written */
  answer(label: Label): void
  /** @returns the answer that was taken back; undefined where there is none */
  undo(): Label | undefined
  /** @returns ends it */
  onChange(listener: () => void): () => void
}

/** One key each. */
export const keys = {
  '1': { label: 'first', help: 'first' },
  '2': { label: 'second', help: 'second' },
  t: { label: 'tie', help: 'tie' },
  b: { label: 'bothBad', help: 'both bad' },
  s: { label: 'skip', help: 'skip' },
  u: { label: undefined, help: 'undo' },
  q: { label: undefined, help: 'quit' },
} as const satisfies Record<string, { label: Label | undefined; help: string }>

export const keyHelp = Object.entries(keys)
  .map(([key, { help }]) => `${key} ${help}`)
  .join(' · ')

export const names: Readonly<Record<Label, string>> = {
  first: 'first',
  second: 'second',
  tie: 'tie',
  bothBad: 'both bad',
  skip: 'skipped',
}

export interface Pressed {
  /** One line about what happened; undefined: the key means nothing. */
  readonly said: string | undefined
  readonly isOver: boolean
}

const key = (input: string): keyof typeof keys | undefined =>
  Object.hasOwn(keys, input.toLowerCase()) ? (input.toLowerCase() as keyof typeof keys) : undefined

/** Does what a key asks for. */
export function pressKey(backend: AnnotateBackend, input: string): Pressed {
  const pressed = key(input)
  if (pressed === undefined) return { said: undefined, isOver: false }
  if (pressed === 'q') return { said: 'quit', isOver: true }
  try {
    if (pressed === 'u') {
      const taken = backend.undo()
      return { said: taken === undefined ? 'nothing to take back' : `taken back: ${names[taken]}`, isOver: false }
    }
    const { label } = keys[pressed]
    if (!backend.current()) return { said: 'all pairs have an answer', isOver: false }
    backend.answer(label)
    return { said: names[label], isOver: false }
  } catch (error) {
    return { said: (error as Error).message, isOver: false }
  }
}

/** How far it is. */
export function describeStatus({ answered, left, counts, agreement }: AnnotatorStatus): string {
  const parts = Object.entries(counts).flatMap(([label, count]) =>
    count > 0 ? [`${count} ${names[label as Label]}`] : [],
  )
  return [
    `${answered} answered${parts.length > 0 ? ` (${parts.join(', ')})` : ''}`,
    `${left} left`,
    ...(agreement ? [`heads foresaw ${percent(agreement.share)} of the last ${agreement.answers}`] : []),
  ].join(' · ')
}

export const describeOrder = ({ order }: AnnotatorStatus): string =>
  order === 'active' ? 'asked because the reward heads disagree on it' : 'in random order'
