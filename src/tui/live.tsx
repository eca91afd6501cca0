// The dashboard on a terminal: events go into the state as they come, the screen follows a few times a second.
import { render } from 'ink'
import type { Listener } from '../index.js'
import { Dashboard } from './dashboard.js'
import { emptyState, reduce } from './run-state.js'

const frameMs = 120

export interface LiveDisplay {
  listener: Listener
  /** Draws the last state and leaves it on the screen. */
  close(): Promise<void>
}

export function openDashboard(name: string, stdout: NodeJS.WriteStream): LiveDisplay {
  let state = emptyState(name)
  let isStale = false
  const element = () => <Dashboard state={state} columns={stdout.columns ?? 80} rows={stdout.rows ?? 24} />
  // Ctrl-C is the command's to handle: it finishes the step and writes a checkpoint
  const screen = render(element(), { stdout, exitOnCtrlC: false, patchConsole: false })
  const draw = () => {
    isStale = false
    screen.rerender(element())
  }
  const timer = setInterval(() => isStale && draw(), frameMs)
  stdout.on('resize', draw)
  return {
    listener(event) {
      state = reduce(state, event)
      isStale = true
    },
    async close() {
      clearInterval(timer)
      stdout.off('resize', draw)
      draw()
      screen.unmount()
      await screen.waitUntilExit()
    },
  }
}
