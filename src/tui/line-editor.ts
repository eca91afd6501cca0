// One line of input being written (it may hold line breaks), with the lines before it in reach of the arrow keys. Pure: a key
// gives the next state.

export interface EditedLine {
  readonly text: string
  /** In UTF-16 units, never inside a character. */
  readonly cursor: number
  /** Lines that were sent, oldest first. */
  readonly history: readonly string[]
  /** Index into history while the arrow keys walk there; its length: the line being written. */
  readonly at: number
  /** The line being written, kept while the arrow keys are elsewhere. */
  readonly draft: string
}

export const emptyLine: EditedLine = { text: '', cursor: 0, history: [], at: 0, draft: '' }

/** The keys that Ink tells apart. */
export interface Key {
  readonly upArrow?: boolean
  readonly downArrow?: boolean
  readonly leftArrow?: boolean
  readonly rightArrow?: boolean
  readonly home?: boolean
  readonly end?: boolean
  readonly backspace?: boolean
  readonly delete?: boolean
  readonly ctrl?: boolean
  readonly meta?: boolean
}

const characters = new Intl.Segmenter(undefined, { granularity: 'grapheme' })
const lengthOfFirst = (text: string) => [...characters.segment(text)][0]?.segment.length ?? 0
const lengthOfLast = (text: string) => [...characters.segment(text)].at(-1)?.segment.length ?? 0

const withText = (line: EditedLine, text: string, cursor: number): EditedLine => ({ ...line, text, cursor })

function walk(line: EditedLine, to: number): EditedLine {
  if (to < 0 || to > line.history.length) return line
  const draft = line.at === line.history.length ? line.text : line.draft
  const text = to === line.history.length ? draft : line.history[to]!
  return { ...line, at: to, draft, text, cursor: text.length }
}

/** The line after a key; `input` is what it types. */
export function press(line: EditedLine, input: string, key: Key): EditedLine {
  const { text, cursor } = line
  const before = text.slice(0, cursor)
  const after = text.slice(cursor)
  if (key.upArrow) return walk(line, line.at - 1)
  if (key.downArrow) return walk(line, line.at + 1)
  if (key.leftArrow) return { ...line, cursor: cursor - lengthOfLast(before) }
  if (key.rightArrow) return { ...line, cursor: cursor + lengthOfFirst(after) }
  if (key.home || (key.ctrl && input === 'a')) return { ...line, cursor: 0 }
  if (key.end || (key.ctrl && input === 'e')) return { ...line, cursor: text.length }
  // Terminals send what Ink calls delete for the backspace key too.
  if (key.backspace || key.delete) {
    const kept = before.slice(0, before.length - lengthOfLast(before))
    return withText(line, kept + after, kept.length)
  }
  if (key.ctrl && input === 'd') return withText(line, before + after.slice(lengthOfFirst(after)), cursor)
  if (key.ctrl && input === 'u') return withText(line, after, 0)
  if (key.ctrl && input === 'k') return withText(line, before, cursor)
  if (key.ctrl && input === 'w') {
    const kept = before.replace(/\S+\s*$/, '')
    return withText(line, kept + after, kept.length)
  }
  if (key.ctrl || key.meta || !input) return line
  const typed = input.replace(/\r\n?/g, '\n').replace(/\t/g, '  ')
  return withText(line, before + typed + after, cursor + typed.length)
}

/** Sends the line: it goes into the history and a new one begins. */
export function send(line: EditedLine): { sent: string; next: EditedLine } {
  const sent = line.text
  const isNew = sent.trim() !== '' && sent !== line.history.at(-1)
  const history = isNew ? [...line.history, sent] : line.history
  return { sent, next: { ...emptyLine, history, at: history.length } }
}
