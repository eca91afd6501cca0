// Progress of downloads and imports on standard error: one line rewritten on a terminal, now and then a line elsewhere.
import type { FetchProgress } from '../index.js'

const rewriteMs = 80
const quietMs = 2000

export interface ProgressPrinter {
  show(task: string, detail?: string): void
  /** Ends the line that is being rewritten. */
  end(): void
}

export function progressPrinter(stream: NodeJS.WriteStream = process.stderr): ProgressPrinter {
  let last = 0
  let current = ''
  let isOpen = false
  return {
    show(task, detail = '') {
      const now = Date.now()
      const isNew = task !== current
      if (!isNew && now - last < (stream.isTTY ? rewriteMs : quietMs)) return
      last = now
      current = task
      const text = detail ? `${task}  ${detail}` : task
      if (!stream.isTTY) {
        stream.write(`${text}\n`)
        return
      }
      if (isNew && isOpen) stream.write('\n')
      stream.write(`\r\x1b[2K${text.slice(0, (stream.columns ?? 80) - 1)}`)
      isOpen = true
    },
    end() {
      if (isOpen) stream.write('\n')
      isOpen = false
      current = ''
    },
  }
}

const mb = (bytes: number) => (bytes / 1e6).toFixed(1)
const share = (done: number, total: number) => `${Math.floor((100 * done) / total)} %`

/** What a fetch is at, as task and detail. The counts of an import are values, not bytes. */
export function describeFetch({ phase, message, done, total }: FetchProgress): [string, string] {
  const task = message.split(':')[0]!
  if (done === undefined) return [task, '']
  if (phase === 'import') return [task, total ? share(done, total) : '']
  return [task, total ? `${mb(done)} of ${mb(total)} MB (${share(done, total)})` : `${mb(done)} MB`]
}
