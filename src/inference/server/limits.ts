// What one client may ask for, and how many requests are computed and wait at a time. A request that finds the queue full
// is told when its turn would have come, from the time that finished requests took (Little's law).
import { ApiError } from './errors.js'

export interface ServerLimits {
  readonly maxBodyBytes: number
  /** Tokens of one prompt; null: what the engine takes. */
  readonly maxPromptTokens: number | null
  /** Choices of one request, all its prompts together. */
  readonly maxChoices: number
  /** Sequences that are computed at a time. */
  readonly maxConcurrent: number
  /** Requests that wait; one more is refused with 429. */
  readonly maxQueue: number
  readonly maxConnections: number
  /** Time to send all headers, and to send the whole request. */
  readonly headersSeconds: number
  readonly requestSeconds: number
  readonly keepAliveSeconds: number
  /** A client that has read nothing of what waits for it for so long is dropped. */
  readonly stallSeconds: number
  /** Time that running requests get after the signal to end. */
  readonly drainSeconds: number
}

export const defaultLimits: ServerLimits = {
  maxBodyBytes: 1 << 20,
  maxPromptTokens: null,
  maxChoices: 16,
  maxConcurrent: 64,
  maxQueue: 256,
  maxConnections: 1024,
  headersSeconds: 15,
  requestSeconds: 60,
  keepAliveSeconds: 15,
  stallSeconds: 30,
  drainSeconds: 30,
}

interface Waiting {
  readonly count: number
  admit(): void
}

/** Weight of the newest request in the average time that a request takes. */
const newestWeight = 0.1
const maxRetrySeconds = 300

/** First come, first served, over places for sequences. */
export class Admission {
  #running = 0
  #seconds: number | undefined
  readonly #queue: Waiting[] = []
  readonly #maxConcurrent: number
  readonly #maxQueue: number

  constructor(limits: Pick<ServerLimits, 'maxConcurrent' | 'maxQueue'>) {
    this.#maxConcurrent = limits.maxConcurrent
    this.#maxQueue = limits.maxQueue
  }

  /** Sequences that hold a place. */
  get running(): number {
    return this.#running
  }

  /** Requests that wait. */
  get queued(): number {
    return this.#queue.length
  }

  /** Waits for `count` places → the function that gives them back. @throws ApiError 429; the signal's reason */
  async acquire(count: number, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted()
    if (this.#queue.length > 0 || this.#running + count > this.#maxConcurrent) {
      if (this.#queue.length >= this.#maxQueue) throw this.#full()
      await new Promise<void>((resolve, reject) => {
        const onAbort = () => {
          this.#queue.splice(this.#queue.indexOf(waiting), 1)
          reject(signal.reason)
          this.#admitNext() // those behind it may need fewer places
        }
        const waiting: Waiting = {
          count,
          admit: () => {
            signal.removeEventListener('abort', onAbort)
            resolve()
          },
        }
        signal.addEventListener('abort', onAbort, { once: true })
        this.#queue.push(waiting)
      })
    } else this.#running += count
    const begin = performance.now()
    let isHeld = true
    return () => {
      if (!isHeld) return
      isHeld = false
      const seconds = (performance.now() - begin) / 1000
      this.#seconds = this.#seconds === undefined ? seconds : this.#seconds + newestWeight * (seconds - this.#seconds)
      this.#running -= count
      this.#admitNext()
    }
  }

  /** Seconds until a request that came now would begin. */
  retryAfterSeconds(): number {
    const waiting = this.#queue.reduce((sum, { count }) => sum + count, 1)
    const seconds = (waiting * (this.#seconds ?? 1)) / Math.max(1, this.#running)
    return Math.min(maxRetrySeconds, Math.max(1, Math.ceil(seconds)))
  }

  #admitNext(): void {
    for (let next = this.#queue[0]; next && this.#running + next.count <= this.#maxConcurrent; next = this.#queue[0]) {
      this.#queue.shift()
      this.#running += next.count
      next.admit()
    }
  }

  #full(): ApiError {
    const seconds = this.retryAfterSeconds()
    return new ApiError(429, `${this.#queue.length} requests wait already; try again in ${seconds} s`, {
      code: 'queue_full',
      headers: { 'retry-after': String(seconds) },
    })
  }
}
