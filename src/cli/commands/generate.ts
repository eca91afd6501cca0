// `espalier generate BASE`: continues one prompt, or the rows of a file in one batch.
import type { ChatMessage, IndexedGeneration, LanguageModel, PlacedRow, Prompt, TextOptions } from '../../index.js'
import { defineCommand, shared, UsageError } from '../command.js'
import { responseFormatOf, samplingFlags, samplingOf } from '../generation-options.js'
import { openModelOf } from '../open-model.js'
import type { ProgressPrinter } from '../progress.js'
import { stdinRows } from '../stdin-rows.js'

/** The prompt of a row of {messages, tools?}, {prompt} or {text}. */
function promptOf({ row, place }: PlacedRow, options: { raw: boolean; system?: string | undefined }): Prompt {
  const { messages, tools, prompt, text } = (row ?? {}) as Record<string, unknown>
  const system = options.system === undefined ? [] : [{ role: 'system', content: options.system }]
  if (Array.isArray(messages)) {
    if ((messages.at(-1) as ChatMessage | undefined)?.role === 'assistant')
      throw new Error(`${place}: the messages end with the assistant's answer: leave it out to have it written`)
    return { messages: [...system, ...messages], ...(Array.isArray(tools) ? { tools } : {}) }
  }
  if (typeof text === 'string') return { text }
  if (typeof prompt !== 'string') throw new Error(`${place}: must hold {prompt}, {messages} or {text}`)
  if (options.raw) return { text: prompt }
  return system.length > 0 ? { messages: [...system, { role: 'user', content: prompt }] } : prompt
}

/** What a line of --json holds. */
const lineOf = ({
  text,
  tokenIds,
  logps,
  finishReason,
  promptTokens,
  cachedTokens,
  seconds,
  tokens,
}: IndexedGeneration) =>
  JSON.stringify({
    text,
    tokenIds,
    logps,
    finishReason,
    promptTokens,
    cachedTokens,
    seconds,
    ...(tokens.some(({ top }) => top) ? { top: tokens.map(({ top }) => top ?? []) } : {}),
  })

/** Generates in one batch and gives results in the order of the prompts, each as soon as those before it are there. */
async function* inOrder(
  model: LanguageModel,
  prompts: readonly Prompt[],
  options: TextOptions & { n: number },
  progress: ProgressPrinter,
): AsyncGenerator<IndexedGeneration> {
  const waiting = new Map<number, IndexedGeneration>()
  const total = prompts.length * options.n
  const started = performance.now()
  let next = 0
  let done = 0
  let tokens = 0
  for await (const result of model.generateMany(prompts, options)) {
    waiting.set(result.index * options.n + result.sample, result)
    done++
    tokens += result.tokenIds.length
    const rate = tokens / ((performance.now() - started) / 1000)
    if (total > 1) progress.show('generating', `${done} of ${total}, ${rate.toFixed(0)} tokens/s`)
    for (let ready = waiting.get(next); ready; ready = waiting.get(next)) {
      waiting.delete(next++)
      yield ready
    }
  }
}

export const generate = defineCommand({
  positionals: '<base>',
  summary: 'continue a prompt, or many in one batch',
  options: {
    base: shared.base,
    prompt: {
      type: 'string',
      nargs: 1, // so that it may begin with a dash
      describe: 'what to answer, through the chat template where the base has one',
    },
    input: {
      type: 'string',
      nargs: 1,
      describe: 'rows of {prompt}, {messages, tools?} or {text} (jsonl, csv, ...); - is stdin',
    },
    system: { type: 'string', nargs: 1, describe: 'a system message before it' },
    raw: { type: 'boolean', default: false, describe: 'continue the prompt as plain text, without template' },
    adapter: { type: 'string', describe: 'a PEFT folder' },
    ...samplingFlags,
    stop: {
      type: 'string',
      array: true,
      default: [] as string[],
      nargs: 1,
      describe: 'a text that ends the answer and is left out (repeatable)',
    },
    n: {
      type: 'number',
      default: 1,
      describe: 'samples of every prompt; each sample has its own seed, from --seed on',
    },
    schema: { type: 'string', conflicts: 'regex', describe: 'a JSON schema file; the answer is JSON that fits it' },
    regex: { type: 'string', nargs: 1, describe: 'the answer matches this expression as a whole' },
    'top-logps': {
      type: 'number',
      default: 0,
      describe: 'with --json: the likeliest tokens at every position, up to 20',
    },
    precision: shared.precision,
    format: shared.format,
    json: shared.json,
  },
  epilogue:
    'Without --max-new-tokens a prompt is answered with 128 tokens at most. With --json every answer is a line of {text, tokenIds, logps, finishReason, promptTokens, cachedTokens, seconds}, in the order of the rows.',
  async run(options, { signal, print }) {
    if ((options.prompt === undefined) === (options.input === undefined))
      throw new UsageError('give either --prompt TEXT or --input FILE')
    if (!Number.isInteger(options.n) || options.n < 1) throw new UsageError(`--n is ${options.n}; it must be 1 or more`)
    const topLogps = options['top-logps']
    if (!(topLogps >= 0 && topLogps <= 20)) throw new UsageError(`--top-logps is ${topLogps}; it must be 0 to 20`)
    const sampling = { maxNewTokens: 128, ...samplingOf(options), ...(topLogps ? { topLogps } : {}) }
    const responseFormat = responseFormatOf(options)
    const { sdk, model, progress } = await openModelOf(options, { adapter: options.adapter, signal })
    try {
      const rows: AsyncIterable<PlacedRow> | PlacedRow[] =
        options.prompt !== undefined
          ? [{ row: { prompt: options.prompt }, place: '--prompt' }]
          : options.input === '-'
            ? stdinRows()
            : sdk.fileSource(options.input!).rows()
      const prompts: Prompt[] = []
      for await (const row of rows) prompts.push(promptOf(row, options))
      const passed = {
        ...sampling,
        raw: options.raw,
        ...(options.stop.length > 0 ? { stop: options.stop } : {}),
        ...(responseFormat ? { responseFormat } : {}),
        signal,
      }
      if (prompts.length === 1 && options.n === 1 && !options.json) {
        for await (const { text } of model.generate(prompts[0]!, passed)) process.stdout.write(text)
        return void print('')
      }
      let isFirst = true
      for await (const result of inOrder(model, prompts, { ...passed, n: options.n }, progress)) {
        // Answers as text are apart by a line of dashes.
        if (!options.json && !isFirst) print('---')
        print(options.json ? lineOf(result) : result.text)
        isFirst = false
      }
      progress.end()
    } finally {
      await model.close()
    }
  },
})
