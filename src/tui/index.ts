// How a run is shown: the dashboard where the output is a terminal, lines where it is not.
import type { Listener } from '../index.js'
import { canDraw } from './can-draw.js'
import { plainLines } from './plain-lines.js'

export interface Display {
  readonly listener: Listener
  close(): Promise<void>
}

export interface DisplayOptions {
  name: string
  stream: NodeJS.WriteStream
  /** Lines even on a terminal. */
  isPlain?: boolean
}

export async function openDisplay({ name, stream, isPlain }: DisplayOptions): Promise<Display> {
  if (isPlain || !canDraw(stream)) {
    return { listener: plainLines((line) => stream.write(`${line}\n`)), close: async () => {} }
  }
  // Ink's colours look at FORCE_COLOR only; read when the module is loaded
  if (process.env.NO_COLOR) process.env.FORCE_COLOR = '0'
  const { openDashboard } = await import('./live.js')
  return openDashboard(name, stream)
}
