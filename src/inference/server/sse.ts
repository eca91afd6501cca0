// Server-sent events over a raw response. Writing waits until the client has read what was written before, so that a slow
// client holds one event of memory; a client that reads nothing for a while is dropped.
import type { ServerResponse } from 'node:http'

export interface EventStream {
  readonly isOpen: boolean
  /** Sends one event; the first one sends the headers. @throws when the client has left or does not read */
  send(data: object | '[DONE]'): Promise<void>
  end(): void
}

export class ClientGoneError extends Error {
  override readonly name = 'ClientGoneError'
}

export function createEventStream(
  response: ServerResponse,
  options: { stallMs: number; headers: Record<string, string> },
): EventStream {
  let isOpen = false
  let draining: Promise<void> | undefined

  const drain = (): Promise<void> => {
    draining ??= new Promise<void>((resolve, reject) => {
      const done = (error?: Error) => {
        clearTimeout(timer)
        response.off('drain', onDrain)
        response.off('close', onClose)
        draining = undefined
        if (error) reject(error)
        else resolve()
      }
      const onDrain = () => done()
      const onClose = () => done(new ClientGoneError('the client has left'))
      const timer = setTimeout(() => {
        done(new ClientGoneError(`the client has read nothing for ${options.stallMs / 1000} s`))
        response.destroy()
      }, options.stallMs)
      response.once('drain', onDrain)
      response.once('close', onClose)
    })
    return draining
  }

  return {
    get isOpen() {
      return isOpen
    },
    async send(data) {
      while (response.writableNeedDrain && !response.destroyed) await drain()
      if (response.destroyed || response.writableEnded) throw new ClientGoneError('the client has left')
      if (!isOpen) {
        isOpen = true
        response.writeHead(200, {
          ...options.headers,
          'content-type': 'text/event-stream; charset=utf-8',
          'cache-control': 'no-cache',
          'x-accel-buffering': 'no', // nginx would collect events
        })
      }
      response.write(`data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`)
    },
    end() {
      if (!response.destroyed) response.end()
    },
  }
}
