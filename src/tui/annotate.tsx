// Annotation on a terminal: a prompt, two answers side by side, one key.
import { Box, type DOMElement, measureElement, render, Text, useApp, useInput } from 'ink'
import { type RefObject, useEffect, useRef, useState } from 'react'
import { type AnnotateBackend, describeOrder, describeStatus, keyHelp, pressKey } from './annotate-state.js'
import { fit, printable } from './text.js'

/** Side by side from this width on, else one below the other. */
const SIDE_BY_SIDE_COLUMNS = 60
const FRAME_MS = 50
/** Lines that are neither of the pair nor the keys: title, two of status, and one that stays free. */
const OTHER_LINES = 4

function Panel({ title, text, width }: { title: string; text: string; width: number }) {
  return (
    <Box flexDirection="column" width={width} paddingRight={1} marginTop={1} flexShrink={0}>
      <Text bold color="cyan">
        {title}
      </Text>
      <Text>{printable(text).trim() || '(empty)'}</Text>
    </Box>
  )
}

/** A window over what is higher than it; arrow keys move it. */
function Window(props: {
  height: number
  offset: number
  inner: RefObject<DOMElement | null>
  children: React.ReactNode
}) {
  const { height, offset, inner, children } = props
  return (
    <Box height={height} overflow="hidden" flexDirection="column">
      <Box ref={inner} marginTop={-offset} flexShrink={0} flexDirection="column">
        {children}
      </Box>
    </Box>
  )
}

export interface AnnotateViewProps {
  backend: AnnotateBackend
  columns: number
  rows: number
}

export function AnnotateView({ backend, columns, rows }: AnnotateViewProps) {
  const { exit } = useApp()
  const [, redraw] = useState(0)
  const [said, setSaid] = useState<string>()
  const [offset, setOffset] = useState(0)
  const [hidden, setHidden] = useState(0)
  const inner = useRef<DOMElement>(null)
  useEffect(() => {
    let timer: NodeJS.Timeout | undefined
    const end = backend.onChange(() => {
      timer ??= setTimeout(() => {
        timer = undefined
        redraw((n) => n + 1)
      }, FRAME_MS)
    })
    return () => {
      end()
      clearTimeout(timer)
    }
  }, [backend])

  const pair = backend.current()
  const room = Math.max(6, rows - OTHER_LINES - Math.ceil(keyHelp.length / (columns - 8)))
  useEffect(() => {
    const height = inner.current ? measureElement(inner.current).height : 0
    setHidden(Math.max(0, height - room))
  })
  useInput((input, key) => {
    if (key.ctrl && (input === 'c' || input === 'd')) return exit()
    if (key.downArrow || key.pageDown) return setOffset((at) => Math.min(hidden, at + (key.pageDown ? room : 1)))
    if (key.upArrow || key.pageUp) return setOffset((at) => Math.max(0, at - (key.pageUp ? room : 1)))
    if (key.ctrl || key.meta) return
    const asked = key.leftArrow ? '1' : key.rightArrow ? '2' : input
    const pressed = pressKey(backend, asked)
    if (pressed.said === undefined) return
    setSaid(pressed.said)
    setOffset(0)
    redraw((n) => n + 1)
    if (pressed.isOver) exit()
  })

  const status = backend.status()
  const isWide = columns >= SIDE_BY_SIDE_COLUMNS
  const width = isWide ? Math.floor(columns / 2) : columns
  const below = hidden - offset
  const notice = [said, below > 0 ? `↓ ${below} more` : undefined, backend.notice()].filter(Boolean).join(' · ')
  return (
    <Box flexDirection="column" width={columns}>
      <Text wrap="truncate">
        <Text bold>{`annotate ${backend.name}`}</Text>
        <Text dimColor>{pair ? ` · ${describeOrder(status)}` : ''}</Text>
      </Text>
      {pair ? (
        <Window height={room} offset={offset} inner={inner}>
          <Panel title="Prompt" text={pair.prompt} width={columns} />
          <Box flexDirection={isWide ? 'row' : 'column'} flexShrink={0}>
            <Panel title="1" text={pair.first} width={width} />
            <Panel title="2" text={pair.second} width={width} />
          </Box>
        </Window>
      ) : (
        <Box marginY={1}>
          <Text color="green">{`All pairs have an answer. The log is ${backend.log}.`}</Text>
        </Box>
      )}
      <Text color="green">{keyHelp}</Text>
      <Text dimColor wrap="truncate">
        {describeStatus(status)}
      </Text>
      <Text dimColor wrap="truncate">
        {fit(notice, columns) || ' '}
      </Text>
    </Box>
  )
}

/** Shows pairs until all have an answer, the user leaves or the signal comes. */
export async function openAnnotateScreen(
  backend: AnnotateBackend,
  options: { stdin: NodeJS.ReadStream; stdout: NodeJS.WriteStream; signal?: AbortSignal },
): Promise<void> {
  const { stdin, stdout, signal } = options
  const element = () => <AnnotateView backend={backend} columns={stdout.columns ?? 80} rows={stdout.rows ?? 24} />
  const screen = render(element(), { stdin, stdout, exitOnCtrlC: false, patchConsole: false })
  const resize = () => screen.rerender(element())
  const leave = () => screen.unmount()
  stdout.on('resize', resize)
  signal?.addEventListener('abort', leave, { once: true })
  try {
    await screen.waitUntilExit()
  } finally {
    stdout.off('resize', resize)
    signal?.removeEventListener('abort', leave)
  }
}
