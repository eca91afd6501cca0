// Terminals for Ink: one of any width that keeps the last frame, and one that is typed into.
import { EventEmitter } from 'node:events'
import { PassThrough } from 'node:stream'
import { render } from 'ink'
import type { ReactElement } from 'react'
import { expect } from 'vitest'

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

const keyboard = () => {
  const stdin = Object.assign(new PassThrough(), { isTTY: true, setRawMode: () => stdin, ref() {}, unref() {} })
  return stdin
}

/** What the element looks like on a screen of so many columns. */
export function draw(element: ReactElement, columns: number): string {
  const terminal = new FakeTerminal(columns)
  const stdout = terminal as unknown as NodeJS.WriteStream
  const stdin = keyboard() as unknown as NodeJS.ReadStream
  const screen = render(element, { stdin, stdout, debug: true, exitOnCtrlC: false, patchConsole: false })
  const { frame } = terminal
  screen.unmount()
  return frame
}

/** Standard input and output of a terminal. */
export function terminal() {
  const stdin = keyboard()
  let shown = ''
  const stdout = Object.assign(new EventEmitter(), {
    isTTY: true,
    columns: 80,
    rows: 24,
    write: (text: string) => {
      shown += text
      return true
    },
  })
  const shows = async (text: string) => {
    for (let i = 0; i < 200 && !shown.includes(text); i++) await new Promise((resolve) => setTimeout(resolve, 10))
    expect(shown).toContain(text)
  }
  const key = async (keys: string) => {
    stdin.write(keys)
    await new Promise((resolve) => setTimeout(resolve, 60))
  }
  return {
    stdin: stdin as unknown as NodeJS.ReadStream,
    stdout: stdout as unknown as NodeJS.WriteStream,
    shows,
    key,
    shown: () => shown,
    forget: () => {
      shown = ''
    },
  }
}
