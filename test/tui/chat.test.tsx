// The chat: what the model is told, the commands, the line editor, the lines without a terminal, and the screen.

import { describe, expect, it } from 'vitest'
import type { ChatMessage, TextChunk } from '../../src/index.js'
import { openChat, TurnView } from '../../src/tui/chat.js'
import { chatInLines } from '../../src/tui/chat-lines.js'
import { type ChatModel, createChat, messagesFor, type Side, type Turn } from '../../src/tui/chat-state.js'
import { type EditedLine, emptyLine, type Key, press, send } from '../../src/tui/line-editor.js'
import { draw, terminal } from './fake-terminal.js'

interface Asked {
  messages: readonly ChatMessage[]
  side: Side
}

/** Answers with the last word, letter by letter, until it is stopped; keeps what it was asked. */
function echo(adapter: string | undefined, pauseMs = 0): ChatModel & { asked: Asked[] } {
  const asked: Asked[] = []
  return {
    name: 'small',
    adapter,
    asked,
    answer(messages, { side, signal }) {
      asked.push({ messages, side })
      const text = `${side} says ${String(messages.at(-1)!.content).split(' ').at(-1)}`
      const generation = {
        text,
        tokenIds: [],
        logps: [],
        finishReason: 'stop',
        promptTokens: 9,
        cachedTokens: 4,
        seconds: 1,
        tokens: [],
      } as const
      return {
        result: Promise.resolve({ ...generation, tokenIds: [], logps: [], tokens: [] }),
        async *[Symbol.asyncIterator](): AsyncGenerator<TextChunk> {
          for (const character of text) {
            if (pauseMs) await new Promise((resolve) => setTimeout(resolve, pauseMs))
            signal.throwIfAborted()
            yield { text: character, tokens: [{ id: 1, logp: 0 }] }
          }
        },
      }
    },
  }
}

describe('a conversation', () => {
  it('tells the model what was said, and the system message first', async () => {
    const model = echo(undefined)
    const chat = createChat(model)
    await chat.submit('/system Be kind')
    await chat.submit('say red')
    await chat.submit('say blue')
    expect(model.asked.at(-1)!.messages).toEqual([
      { role: 'system', content: 'Be kind' },
      { role: 'user', content: 'say red' },
      { role: 'assistant', content: 'base says red' },
      { role: 'user', content: 'say blue' },
    ])
    await chat.submit('/clear')
    await chat.submit('say one')
    expect(model.asked.at(-1)!.messages).toHaveLength(2)
  })

  it('asks who is to answer; both see their own answers, or the other one', async () => {
    const model = echo('tuned')
    const chat = createChat(model)
    await chat.submit('one')
    expect(model.asked.map(({ side }) => side)).toEqual(['adapter'])
    await chat.submit('/compare')
    await chat.submit('two')
    expect(
      model.asked
        .slice(1)
        .map(({ side }) => side)
        .sort(),
    ).toEqual(['adapter', 'base'])
    await chat.submit('/base')
    await chat.submit('three')
    const said = messagesFor(chat.state, 'base').filter(({ role }) => role === 'assistant')
    expect(said.map(({ content }) => content)).toEqual(['adapter says one', 'base says two', 'base says three'])
    expect(messagesFor(chat.state, 'adapter')[3]!.content).toBe('adapter says two')
  })

  it('keeps what an answer had when it was stopped, and goes on', async () => {
    const chat = createChat(echo(undefined, 3))
    const answering = chat.submit('something long')
    await new Promise((resolve) => setTimeout(resolve, 25))
    expect(chat.stop()).toBe(true)
    await answering
    const turn = chat.state.past.at(-1) as Turn
    expect(turn.answers.base!.status).toBe('stopped')
    expect('base says long').toContain(turn.answers.base!.text)
    expect(chat.stop()).toBe(false)
    await chat.submit('/quit')
    expect(chat.state.isOver).toBe(true)
  })

  it('says what is wrong and changes nothing', async () => {
    const chat = createChat(echo(undefined))
    await chat.submit('/adapter')
    await chat.submit('/nothing')
    expect(chat.state.past.map((item) => (item.kind === 'note' ? item.text : ''))).toEqual([
      expect.stringContaining('--adapter DIR'),
      expect.stringContaining('/nothing'),
    ])
    expect(chat.state.sides).toEqual(['base'])
  })

  it('shows a failure as the answer', async () => {
    const failing: ChatModel = {
      ...echo(undefined),
      answer: () => ({
        result: Promise.reject(new Error('too long')).catch(() => undefined as never),
        // biome-ignore lint/correctness/useYield: it fails before the first token
        async *[Symbol.asyncIterator]() {
          throw new Error('too long')
        },
      }),
    }
    const chat = createChat(failing)
    await chat.submit('x')
    expect((chat.state.past[0] as Turn).answers.base).toMatchObject({ status: 'failed', error: 'too long' })
  })
})

describe('the line editor', () => {
  const type = (line: EditedLine, ...keys: (string | Key)[]) =>
    keys.reduce<EditedLine>((now, key) => (typeof key === 'string' ? press(now, key, {}) : press(now, '', key)), line)

  it('moves and deletes by what a reader takes for a character', () => {
    let line = type(emptyLine, 'a👩‍👩‍👧é', { leftArrow: true }, { leftArrow: true }, 'b')
    expect(line).toMatchObject({ text: 'ab👩‍👩‍👧é', cursor: 2 })
    line = type(line, { rightArrow: true }, { backspace: true })
    expect(line).toMatchObject({ text: 'abé', cursor: 2 })
    expect(press(line, 'w', { ctrl: true }).text).toBe('é')
    expect(press(line, 'k', { ctrl: true }).text).toBe('ab')
    expect(type(line, { home: true }, { backspace: true }).text).toBe('abé')
  })

  it('walks through what was sent and keeps what is being written', () => {
    let line = emptyLine
    for (const text of ['one', 'two', 'two']) line = send(type(line, text)).next
    expect(line.history).toEqual(['one', 'two'])
    line = type(line, 'dra', { upArrow: true })
    expect(line.text).toBe('two')
    line = type(line, { upArrow: true }, { upArrow: true })
    expect(line.text).toBe('one')
    line = type(line, { downArrow: true }, { downArrow: true }, 'ft')
    expect(line.text).toBe('draft')
  })

  it('takes pasted lines as one', () => {
    expect(type(emptyLine, 'a\r\nb\rc').text).toBe('a\nb\nc')
  })
})

describe('without a terminal', () => {
  const talk = async (model: ChatModel, lines: string[]) => {
    let out = ''
    const said: string[] = []
    await chatInLines(model, {
      lines: (async function* () {
        yield* lines
      })(),
      write: (text) => {
        out += text
      },
      say: (text) => void said.push(text),
    })
    return { out, said }
  }

  it('answers go out whole, figures and notes apart', async () => {
    const { out, said } = await talk(echo('tuned'), ['say red', '', '/compare', 'say blue', '/quit', 'never'])
    expect(out).toBe('adapter says red\nbase: base says blue\nadapter: adapter says blue\n')
    expect(said[0]).toMatch(/^16 tokens, .* tokens\/s, 4 of 9 prompt tokens cached$/)
    expect(said[1]).toBe('base and adapter answer')
    expect(said.slice(2).map((text) => text.split(':')[0])).toEqual(['base', 'adapter'])
    expect(said).toHaveLength(4)
  })
})

describe('on the screen', () => {
  const answer = { tokens: 12, tokensPerSecond: 54.3, promptTokens: 40, cachedTokens: 32, status: 'done' } as const
  const turn: Turn = {
    kind: 'turn',
    user: 'Which colour?',
    answers: { base: { ...answer, text: 'Red, I think.' }, adapter: { ...answer, text: 'Blue.', status: 'stopped' } },
  }

  it('two answers stand side by side where there is room', () => {
    const wide = draw(<TurnView turn={turn} model={echo('tuned')} columns={100} />, 100)
    expect(wide).toMatch(/small +tuned/)
    expect(wide).toMatch(/Red, I think\. +Blue\./)
    expect(wide).toContain('12 tokens, 54 tokens/s, 32 of 40 prompt')
    expect(wide).toContain('stopped')
    const narrow = draw(<TurnView turn={turn} model={echo('tuned')} columns={50} />, 50)
    expect(narrow).not.toMatch(/Red, I think\. +Blue\./)
    for (const line of narrow.split('\n')) expect(line.length).toBeLessThanOrEqual(50)
  })

  it('answers what is typed, finds it again with the arrow keys, and leaves on the second Ctrl-C', async () => {
    const model = echo('tuned')
    const screen = terminal()
    const open = openChat(model, { ...screen, first: ['/system Be kind'] })
    await screen.shows('system: Be kind')
    for (const letter of 'say red') await screen.key(letter)
    await screen.key('\r')
    await screen.shows('adapter says red')
    screen.forget()
    await screen.key('\x1b[A')
    await screen.shows('say red')
    await screen.key('\r')
    await screen.shows('adapter says red')
    expect(model.asked).toHaveLength(2)
    await screen.key('\x03')
    await screen.shows('Ctrl-C once more leaves')
    await screen.key('\x03')
    await open
  })

  it('shows the end of an answer that is longer than the screen, and nothing that steers the terminal', async () => {
    const long = `${Array.from({ length: 60 }, (_, i) => `line ${i}`).join('\n')}\x1b[2J!`
    const model: ChatModel = {
      ...echo(undefined),
      answer: () => ({
        result: new Promise(() => {}),
        async *[Symbol.asyncIterator](): AsyncGenerator<TextChunk> {
          yield { text: long, tokens: [] }
          await new Promise(() => {})
        },
      }),
    }
    const screen = terminal()
    const controller = new AbortController()
    const open = openChat(model, { ...screen, signal: controller.signal })
    await screen.shows('/help')
    screen.forget()
    await screen.key('x\r')
    await screen.shows('line 59[2J!')
    expect(screen.shown()).not.toContain('line 20\n')
    expect(screen.shown()).not.toContain('\x1b[2J')
    controller.abort()
    await open
  })

  it('stops an answer with Ctrl-C and stays', async () => {
    const screen = terminal()
    const open = openChat(echo(undefined, 20), screen)
    await screen.shows('/help')
    await screen.key('say something\r')
    await screen.shows('base say')
    await screen.key('\x03')
    await screen.shows('stopped')
    await screen.key('/quit\r')
    await open
  })
})
