// The tokens of one sequence on their way from the step loop to whoever reads them.
import type { FinishReason, GeneratedToken, TokenStream } from './request.js'

export class TokenQueue implements TokenStream {
  readonly finished: Promise<FinishReason>
  cachedTokens = 0
  private readonly tokens: GeneratedToken[] = []
  private end: { error: unknown } | { error?: never } | null = null
  private wake: (() => void) | null = null
  private readonly onCancel: () => void
  private settle!: { resolve(reason: FinishReason): void; reject(error: unknown): void }

  /** @param onCancel told once, when the reader gives up before the end */
  constructor(onCancel: () => void) {
    this.onCancel = onCancel
    this.finished = new Promise((resolve, reject) => {
      this.settle = { resolve, reject }
    })
    // Whoever only iterates learns of a failure there.
    this.finished.catch(() => {})
  }

  get isEnded(): boolean {
    return this.end !== null
  }

  push(token: GeneratedToken): void {
    if (this.end) return
    this.tokens.push(token)
    this.notify()
  }

  finish(reason: FinishReason): void {
    if (this.end) return
    this.end = {}
    this.settle.resolve(reason)
    this.notify()
  }

  fail(error: unknown): void {
    if (this.end) return
    this.end = { error }
    this.tokens.length = 0
    this.settle.reject(error)
    this.notify()
  }

  cancel(): void {
    if (this.end) return
    this.fail(new DOMException('the request was cancelled', 'AbortError'))
    this.onCancel()
  }

  private notify(): void {
    this.wake?.()
    this.wake = null
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<GeneratedToken, void> {
    try {
      for (;;) {
        const token = this.tokens.shift()
        if (token) yield token
        else if (this.end) {
          if ('error' in this.end) throw this.end.error
          return
        } else
          await new Promise<void>((resolve) => {
            this.wake = resolve
          })
      }
    } finally {
      this.cancel()
    }
  }
}
