// Annotation without a terminal: pairs go out as text, one line each comes back.
import { type AnnotateBackend, describeOrder, describeStatus, keyHelp, pressKey } from './annotate-state.js'
import { printable } from './text.js'

export interface AnnotateLinesOptions {
  readonly lines: AsyncIterable<string>
  /** Pairs. */
  write(text: string): void
  /** What happened, a line each. */
  say(text: string): void
  readonly signal?: AbortSignal
}

export async function annotateInLines(backend: AnnotateBackend, options: AnnotateLinesOptions): Promise<void> {
  const { lines, write, say, signal } = options
  let warned: string | undefined
  /** @returns whether there is a pair */
  const show = () => {
    const notice = backend.notice()
    if (notice !== warned && notice !== undefined) say(notice)
    warned = notice
    const pair = backend.current()
    if (!pair) {
      say(`all pairs have an answer: ${describeStatus(backend.status())}`)
      return false
    }
    const parts = [`prompt: ${pair.prompt}`, `1: ${pair.first}`, `2: ${pair.second}`]
    write(`${parts.map(printable).join('\n')}\n\n`)
    return true
  }
  say(keyHelp)
  if (!show()) return
  for await (const line of lines) {
    if (signal?.aborted) return
    const { said, isOver } = pressKey(backend, line.trim())
    if (isOver) break
    if (said === undefined) {
      say(`${JSON.stringify(line)} is no key: ${keyHelp}`)
      continue
    }
    say(`${said} · ${describeStatus(backend.status())} · ${describeOrder(backend.status())}`)
    if (!show()) return
  }
}
