// The chat without a terminal: lines come in, answers go out as text, everything else to the other stream.
import type { ChatModel, Side } from './chat-state.js'
import { createChat, describeAnswer } from './chat-state.js'

export interface ChatLinesOptions {
  readonly lines: AsyncIterable<string>
  /** Text of answers, as it comes. */
  write(text: string): void
  /** Notes and figures, a line each. */
  say(text: string): void
  readonly signal?: AbortSignal
}

export async function chatInLines(model: ChatModel, { lines, write, say, signal }: ChatLinesOptions): Promise<void> {
  const written: Partial<Record<Side, number>> = {}
  // One answer streams; of two the second is written when the first is over.
  const chat = createChat(model, () => {
    const { current, sides } = chat.state
    const answer = current?.answers[sides[0]!]
    if (!answer || sides.length > 1) return
    write(answer.text.slice(written[sides[0]!] ?? 0))
    written[sides[0]!] = answer.text.length
  })
  const { state } = chat
  const stop = () => void chat.stop()
  signal?.addEventListener('abort', stop)
  try {
    for await (const line of lines) {
      if (signal?.aborted) break
      const before = state.past.at(-1)
      delete written[state.sides[0]!]
      await chat.submit(line)
      for (const item of state.past.slice(before ? state.past.lastIndexOf(before) + 1 : 0)) {
        if (item.kind === 'note') {
          say(item.text)
          continue
        }
        const sides = Object.keys(item.answers) as Side[]
        for (const side of sides) {
          const answer = item.answers[side]!
          write(sides.length > 1 ? `${side}: ${answer.text}\n` : '\n')
          say(`${sides.length > 1 ? `${side}: ` : ''}${describeAnswer(answer)}`)
        }
      }
      if (state.isOver) break
    }
  } finally {
    signal?.removeEventListener('abort', stop)
  }
}
