// A conversation with a base, with its adapter, or with both side by side: what is said, and the commands. Knows nothing of
// the screen; the Ink application and the line mode show what is here.
import type { ChatMessage, Generation, TextChunk } from '../index.js'

export type Side = 'base' | 'adapter'

/** What the conversation needs of a model. */
export interface ChatModel {
  /** Of the base. */
  readonly name: string
  /** Of the adapter, where there is one. */
  readonly adapter: string | undefined
  answer(
    messages: readonly ChatMessage[],
    options: { side: Side; turn: number; signal: AbortSignal },
  ): AsyncIterable<TextChunk> & { readonly result: Promise<Generation> }
}

export interface Answer {
  text: string
  tokens: number
  /** From the first token on. */
  tokensPerSecond: number | undefined
  promptTokens: number | undefined
  cachedTokens: number | undefined
  status: 'waiting' | 'streaming' | 'done' | 'cut' | 'stopped' | 'failed'
  error?: string
}

export interface Turn {
  readonly kind: 'turn'
  readonly user: string
  readonly answers: Partial<Record<Side, Answer>>
}
export interface Note {
  readonly kind: 'note'
  readonly text: string
}

export interface ChatState {
  readonly model: ChatModel
  /** Who answers. */
  sides: readonly Side[]
  system: string | undefined
  /** What is over, in order; never changes but by growing. */
  readonly past: (Turn | Note)[]
  /** What is being answered. */
  current: Turn | undefined
  isOver: boolean
}

export interface Chat {
  readonly state: ChatState
  /** A line of the user: a command or something to answer. Resolves when it is dealt with. */
  submit(line: string): Promise<void>
  /** Stops the answer. @returns false where there is none */
  stop(): boolean
}

const help = `/base  /adapter  who answers
/compare         both, side by side
/system TEXT     what the model is told first; without text: nothing
/clear           forget the conversation
/help  /quit`

/** How an answer went, in a few words. */
export function describeAnswer(answer: Answer): string {
  const { tokens, tokensPerSecond, promptTokens, cachedTokens, status, error } = answer
  if (status === 'failed') return error ?? 'failed'
  if (status === 'waiting') return 'reading'
  return [
    `${tokens} token${tokens === 1 ? '' : 's'}`,
    tokensPerSecond === undefined ? '' : `${tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0)} tokens/s`,
    promptTokens === undefined ? '' : `${cachedTokens} of ${promptTokens} prompt tokens cached`,
    status === 'stopped' ? 'stopped' : status === 'cut' ? 'cut at the limit of tokens' : '',
  ]
    .filter(Boolean)
    .join(', ')
}

/** The conversation as one side sees it: where it did not answer, the other's answer stands. */
export function messagesFor(state: ChatState, side: Side): ChatMessage[] {
  const messages: ChatMessage[] = state.system ? [{ role: 'system', content: state.system }] : []
  for (const item of state.current ? [...state.past, state.current] : state.past) {
    if (item.kind === 'note') continue
    const answered = item.answers[side]?.text ? item.answers[side] : (item.answers.base ?? item.answers.adapter)
    if (item !== state.current && !answered?.text) continue
    messages.push({ role: 'user', content: item.user })
    if (item !== state.current) messages.push({ role: 'assistant', content: answered!.text })
  }
  return messages
}

export function createChat(model: ChatModel, onChange: () => void = () => {}): Chat {
  const state: ChatState = {
    model,
    sides: [model.adapter === undefined ? 'base' : 'adapter'],
    system: undefined,
    past: [],
    current: undefined,
    isOver: false,
  }
  let stopping: AbortController | undefined
  let turns = 0

  const note = (text: string) => void state.past.push({ kind: 'note', text })

  async function answer(side: Side, into: Answer, signal: AbortSignal): Promise<void> {
    let first = 0
    try {
      const stream = model.answer(messagesFor(state, side), { side, turn: turns, signal })
      for await (const { text, tokens } of stream) {
        into.status = 'streaming'
        into.text += text
        into.tokens += tokens.length
        const now = performance.now()
        if (!first) first = now
        else into.tokensPerSecond = (into.tokens - 1) / ((now - first) / 1000)
        onChange()
      }
      const { promptTokens, cachedTokens, finishReason } = await stream.result
      Object.assign(into, { promptTokens, cachedTokens, status: finishReason === 'length' ? 'cut' : 'done' })
    } catch (error) {
      into.status = signal.aborted ? 'stopped' : 'failed'
      if (!signal.aborted) into.error = error instanceof Error ? error.message : String(error)
    }
    onChange()
  }

  async function say(user: string): Promise<void> {
    const fresh = (): Answer => ({
      text: '',
      tokens: 0,
      tokensPerSecond: undefined,
      promptTokens: undefined,
      cachedTokens: undefined,
      status: 'waiting',
    })
    const answers = Object.fromEntries(state.sides.map((side) => [side, fresh()])) as Turn['answers']
    state.current = { kind: 'turn', user, answers }
    stopping = new AbortController()
    const { signal } = stopping
    turns++
    onChange()
    await Promise.all(state.sides.map((side) => answer(side, answers[side]!, signal)))
    state.past.push(state.current)
    state.current = undefined
    stopping = undefined
  }

  function answerBy(sides: readonly Side[], what: string): void {
    const isThere = model.adapter !== undefined || !sides.includes('adapter')
    if (isThere) state.sides = sides
    note(isThere ? what : 'no adapter is loaded: start again with --adapter DIR, for example runs/<name>/adapter')
  }

  const commands: Record<string, (rest: string) => void> = {
    base: () => answerBy(['base'], `${model.name} answers`),
    adapter: () => answerBy(['adapter'], `${model.adapter} answers`),
    compare: () => answerBy(['base', 'adapter'], 'base and adapter answer'),
    clear() {
      state.past.length = 0
      note('the conversation is forgotten')
    },
    system(rest) {
      state.system = rest || undefined
      note(rest ? `system: ${rest}` : 'no system message')
    },
    help: () => note(help),
    quit() {
      state.isOver = true
    },
  }
  commands.exit = commands.quit!

  return {
    state,
    async submit(line) {
      const text = line.trim()
      if (!text || state.current) return
      const command = /^\/(\w+)(?:\s+([\s\S]*))?$/.exec(text)
      if (!command) await say(text)
      else if (commands[command[1]!]) commands[command[1]!]!(command[2]?.trim() ?? '')
      else note(`there is no /${command[1]}; /help shows what there is`)
      onChange()
    },
    stop() {
      if (!stopping) return false
      stopping.abort(new DOMException('stopped', 'AbortError'))
      return true
    },
  }
}
