// SIGINT and SIGTERM: the first lets the command finish what it is at, the second ends the process.

export interface Interrupt {
  readonly signal: AbortSignal
  stop(): void
}

export function listenForInterrupt(): Interrupt {
  const controller = new AbortController()
  const onSignal = () => {
    if (controller.signal.aborted) process.exit(130)
    process.stderr.write('\ninterrupted: finishing the step at hand; once more ends at once\n')
    controller.abort(new DOMException('interrupted', 'AbortError'))
  }
  const signals = ['SIGINT', 'SIGTERM'] as const
  for (const name of signals) process.on(name, onSignal)
  return {
    signal: controller.signal,
    // The command is over: whatever comes while it winds up ends it with the same code. The new listener comes
    // before the old one goes, since without any a signal kills.
    stop() {
      for (const name of signals) {
        process.once(name, () => process.exit(130))
        process.off(name, onSignal)
      }
    },
  }
}
