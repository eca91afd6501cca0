// The chat on a terminal: what is over scrolls up, below it the answer as it comes, the line being written and a status line.
import { Box, render, Static, Text, useApp, useInput } from 'ink'
import { useEffect, useRef, useState } from 'react'
import {
  type Answer,
  type Chat,
  type ChatModel,
  createChat,
  describeAnswer,
  type Note,
  type Side,
  type Turn,
} from './chat-state.js'
import { type EditedLine, emptyLine, press, send } from './line-editor.js'
import { printable } from './text.js'

/** Side by side from this width on, else one below the other. */
const SIDE_BY_SIDE_COLUMNS = 60
const FRAME_MS = 50
/** A second Ctrl-C within this time leaves. */
const LEAVE_MS = 2000
/** Lines below the answer that comes: a blank one, the line being written, the status line, and one that stays free. */
const LINES_BELOW = 5
/** Wrapping at words takes so much more lines than wrapping anywhere. */
const WRAP_LOSS = 1.15

/** About how many lines a turn takes on the screen. */
function linesOf(turn: Turn, columns: number): number {
  const texts = Object.values(turn.answers).map(({ text }) => text)
  const isWide = texts.length > 1 && columns >= SIDE_BY_SIDE_COLUMNS
  const width = (isWide ? columns / 2 : columns) / WRAP_LOSS
  const heights = texts.map((text) =>
    text.split('\n').reduce((n, line) => n + Math.max(1, Math.ceil(line.length / width)), 2),
  )
  return 1 + (isWide ? Math.max(...heights) : heights.reduce((a, b) => a + b, 0))
}

function AnswerView({ answer, label, width }: { answer: Answer; label: string | undefined; width: number }) {
  return (
    <Box flexDirection="column" width={width} paddingRight={1}>
      {label ? <Text color="cyan">{label}</Text> : null}
      {answer.text ? <Text>{printable(answer.text.trimStart())}</Text> : null}
      <Text dimColor={answer.status !== 'failed'} color={answer.status === 'failed' ? 'red' : undefined}>
        {answer.status === 'waiting' ? '…' : describeAnswer(answer)}
      </Text>
    </Box>
  )
}

export function TurnView({ turn, model, columns }: { turn: Turn; model: ChatModel; columns: number }) {
  const sides = Object.keys(turn.answers) as Side[]
  const isPair = sides.length > 1
  const isWide = isPair && columns >= SIDE_BY_SIDE_COLUMNS
  return (
    <Box flexDirection="column" marginBottom={1} width={columns}>
      <Text bold color="green">{`> ${turn.user}`}</Text>
      <Box flexDirection={isWide ? 'row' : 'column'}>
        {sides.map((side) => (
          <AnswerView
            key={side}
            answer={turn.answers[side]!}
            label={isPair ? (side === 'base' ? model.name : (model.adapter ?? side)) : undefined}
            width={isWide ? Math.floor(columns / 2) : columns}
          />
        ))}
      </Box>
    </Box>
  )
}

const NoteView = ({ note }: { note: Note }) => (
  <Box marginBottom={1}>
    <Text dimColor>{note.text}</Text>
  </Box>
)

function InputView({ line, isBusy }: { line: EditedLine; isBusy: boolean }) {
  const { text, cursor } = line
  const under = text.slice(cursor).match(/^[\s\S]/u)?.[0] ?? ' '
  const shown = under === '\n' ? ' \n' : under
  return (
    <Text dimColor={isBusy}>
      {'> '}
      {text.slice(0, cursor)}
      <Text inverse>{shown}</Text>
      {text.slice(cursor + (cursor < text.length ? under.length : 0))}
    </Text>
  )
}

export interface ChatViewProps {
  model: ChatModel
  columns: number
  rows: number
  /** Called with the chat when it is made, for whoever has to end it from outside. */
  onOpen?: (chat: Chat) => void
}

export function ChatView({ model, columns, rows, onOpen }: ChatViewProps) {
  const { exit } = useApp()
  const [, redraw] = useState(0)
  const timer = useRef<NodeJS.Timeout | undefined>(undefined)
  const pressedAt = useRef(Number.NEGATIVE_INFINITY)
  const [isLeaving, setLeaving] = useState(false)
  const [line, setLine] = useState(emptyLine)
  const newest = useRef(line)
  const [generation, setGeneration] = useState(0)
  const chat = useRef<Chat>(undefined)
  chat.current ??= createChat(model, () => {
    timer.current ??= setTimeout(() => {
      timer.current = undefined
      redraw((n) => n + 1)
    }, FRAME_MS)
  })
  const { state, submit, stop } = chat.current
  useEffect(() => {
    onOpen?.(chat.current!)
    return () => clearTimeout(timer.current)
  }, [onOpen])

  const change = (next: EditedLine) => {
    newest.current = next // keys may come faster than frames
    setLine(next)
  }
  const enter = async () => {
    const { sent, next } = send(newest.current)
    change(next)
    const head = state.past[0]
    await submit(sent)
    if (head && state.past[0] !== head) setGeneration((n) => n + 1) // forgotten: what scrolled up stays on the screen
    if (state.isOver) exit()
  }
  useInput((input, key) => {
    if (key.ctrl && input === 'c') {
      const now = performance.now()
      const isStopping = stop()
      if (!isStopping && now - pressedAt.current < LEAVE_MS) return exit()
      pressedAt.current = now
      setLeaving(true)
      setTimeout(() => setLeaving(false), LEAVE_MS).unref()
      return
    }
    if (key.ctrl && input === 'd' && newest.current.text === '' && !state.current) return exit()
    if (
      key.return &&
      !key.meta &&
      !(newest.current.text.endsWith('\\') && newest.current.cursor === newest.current.text.length)
    ) {
      if (!state.current) void enter()
      return
    }
    if (key.return) {
      const { text, cursor } = newest.current
      const isEscaped = !key.meta
      const before = isEscaped ? text.slice(0, cursor - 1) : text.slice(0, cursor)
      return change({ ...newest.current, text: `${before}\n${text.slice(cursor)}`, cursor: before.length + 1 })
    }
    // What comes at once (a paste, a script) is sent where it ends with a line break; others in it stay.
    const isSent = input.length > 1 && /[\r\n]$/.test(input) && !state.current
    change(press(newest.current, isSent ? input.replace(/[\r\n]+$/, '') : input, key))
    if (isSent) void enter()
  })

  const answering = state.sides.map((side) => (side === 'base' ? model.name : model.adapter)).join(' and ')
  const hint = isLeaving
    ? 'Ctrl-C once more leaves'
    : state.current
      ? 'Ctrl-C stops'
      : '/help, \\ and Enter for a new line'
  return (
    <>
      <Static key={generation} items={[...state.past]}>
        {(item, i) =>
          item.kind === 'note' ? (
            <NoteView key={i} note={item} />
          ) : (
            <TurnView key={i} turn={item} model={model} columns={columns} />
          )
        }
      </Static>
      {state.current ? (
        // More than a screen would flicker: the end of it is shown until it is over.
        <Box
          flexDirection="column"
          justifyContent="flex-end"
          overflow="hidden"
          {...(linesOf(state.current, columns) > rows - LINES_BELOW ? { height: Math.max(3, rows - LINES_BELOW) } : {})}
        >
          <Box flexShrink={0}>
            <TurnView turn={state.current} model={model} columns={columns} />
          </Box>
        </Box>
      ) : null}
      <InputView line={line} isBusy={state.current !== undefined} />
      <Text dimColor wrap="truncate">
        {`${answering}${state.system ? ' · system' : ''} · ${hint}`}
      </Text>
    </>
  )
}

/** Runs the chat on a terminal until the user leaves or the signal comes. */
export async function openChat(
  model: ChatModel,
  options: { stdin: NodeJS.ReadStream; stdout: NodeJS.WriteStream; signal?: AbortSignal; first?: readonly string[] },
): Promise<void> {
  const { stdin, stdout, signal, first = [] } = options
  let chat: Chat | undefined
  const element = () => (
    <ChatView
      model={model}
      columns={stdout.columns ?? 80}
      rows={stdout.rows ?? 24}
      onOpen={(opened) => {
        chat = opened
        for (const line of first) void opened.submit(line)
      }}
    />
  )
  const screen = render(element(), { stdin, stdout, exitOnCtrlC: false, patchConsole: false })
  const resize = () => screen.rerender(element())
  const leave = () => screen.unmount()
  stdout.on('resize', resize)
  signal?.addEventListener('abort', leave, { once: true })
  try {
    await screen.waitUntilExit()
  } finally {
    chat?.stop()
    stdout.off('resize', resize)
    signal?.removeEventListener('abort', leave)
  }
}
