// `espalier chat BASE`: a conversation with a base, its adapter, or both.
import { basename, dirname } from 'node:path'
import { createInterface } from 'node:readline'
import { canDraw } from '../../tui/can-draw.js'
import type { ChatModel } from '../../tui/chat-state.js'
import { defineCommand, shared } from '../command.js'
import { samplingFlags, samplingOf } from '../generation-options.js'
import { openModelOf } from '../open-model.js'

/** runs/<name>/adapter is called <name>. */
const adapterName = (folder: string) => (basename(folder) === 'adapter' ? basename(dirname(folder)) : basename(folder))

export const chat = defineCommand({
  positionals: '<base>',
  summary: 'talk to a base, to its adapter, or to both side by side',
  options: {
    base: shared.base,
    adapter: { type: 'string', describe: 'a PEFT folder, for example runs/<name>/adapter' },
    system: { type: 'string', nargs: 1, describe: 'what the model is told first' },
    ...samplingFlags,
    'max-new-tokens': { type: 'number', default: 1024, describe: 'cut an answer after so many tokens' },
    temperature: { type: 'number', default: 0.7, describe: '0: greedy' },
    precision: shared.precision,
    format: shared.format,
  },
  epilogue:
    'Commands in the chat: /base, /adapter, /compare, /system, /clear, /help, /quit. Without a terminal every line of standard input is answered; figures go to standard error.',
  async run(options, { signal, say }) {
    const sampling = samplingOf(options)
    const { model } = await openModelOf(options, { adapter: options.adapter, signal })
    try {
      const backend: ChatModel = {
        name: basename(model.name.replace(/\s*\(.*\)$/, '')),
        adapter: options.adapter === undefined ? undefined : adapterName(options.adapter),
        answer: (messages, { side, turn, signal: stopped }) =>
          // A base without a template gets the last message as plain text.
          model.generate(model.template ? messages : String(messages.at(-1)!.content), {
            ...sampling,
            seed: (sampling.seed ?? 0) + turn,
            adapter: side === 'base' ? null : model.defaultAdapter,
            signal: AbortSignal.any([signal, stopped]),
          }),
      }
      if (!model.template) say(`${model.name} has no chat template: every line is continued as plain text`)
      const first = options.system === undefined ? [] : [`/system ${options.system}`]
      if (process.stdin.isTTY && canDraw(process.stdout)) {
        const { openChat } = await import('../../tui/chat.js')
        await openChat(backend, { stdin: process.stdin, stdout: process.stdout, signal, first })
        return
      }
      const { chatInLines } = await import('../../tui/chat-lines.js')
      const lines = async function* () {
        yield* first
        yield* createInterface({ input: process.stdin, crlfDelay: Number.POSITIVE_INFINITY })
      }
      await chatInLines(backend, { lines: lines(), write: (text) => void process.stdout.write(text), say, signal })
      signal.throwIfAborted()
    } finally {
      await model.close()
    }
  },
})
