// A terminal of any width that keeps the last frame, for Ink.
import { EventEmitter } from 'node:events'
import { render } from 'ink'
import type { ReactElement } from 'react'

class FakeTerminal extends EventEmitter {
  frame = ''
  readonly columns: number

  constructor(columns: number) {
    super()
    this.columns = columns
  }

  write = (frame: string): void => {
    this.frame = frame
  }
}

/** What the element looks like on a screen of so many columns. */
export function draw(element: ReactElement, columns: number): string {
  const terminal = new FakeTerminal(columns)
  const stdout = terminal as unknown as NodeJS.WriteStream
  const screen = render(element, { stdout, debug: true, exitOnCtrlC: false, patchConsole: false })
  const { frame } = terminal
  screen.unmount()
  return frame
}
