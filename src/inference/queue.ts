// A queue between one producer that does not wait and one consumer that iterates.

export interface Queue<T> {
  push(item: T): void
  /** No more items: the iteration ends after those that are there, or throws the error at once. */
  end(error?: unknown): void
  /** Items as they come; `onLeave` is called when the consumer stops before the end, or at the end. */
  read(onLeave?: () => void): AsyncGenerator<T>
}

export function createQueue<T>(): Queue<T> {
  let items: T[] = []
  let isOver = false
  let failure: { error: unknown } | undefined
  let wake = () => {}
  return {
    push(item) {
      items.push(item)
      wake()
    },
    end(error) {
      if (isOver) return
      isOver = true
      if (error !== undefined) failure = { error }
      wake()
    },
    async *read(onLeave = () => {}) {
      try {
        for (;;) {
          if (failure) throw failure.error
          const ready = items
          items = []
          yield* ready
          if (items.length > 0 || failure) continue
          if (isOver) return
          await new Promise<void>((resolve) => {
            wake = resolve
          })
        }
      } finally {
        onLeave()
      }
    },
  }
}
