// `espalier score BASE --input rows.jsonl`: the log-probability of every token, one JSON line per row.
import { defineCommand, shared } from '../command.js'
import { describeFetch, progressPrinter } from '../progress.js'
import { stdinRows } from '../stdin-rows.js'

export const score = defineCommand({
  positionals: '<base>',
  summary: 'log-probabilities of the tokens of rows, one JSON line per row',
  options: {
    base: {
      type: 'string',
      demandOption: true,
      describe: 'a base directory, a .gguf file, a Hugging Face folder, hf:org/name, or a known name',
    },
    adapter: { type: 'string', describe: 'a PEFT folder' },
    'allow-partial': { type: 'boolean', default: false, describe: 'load an adapter of which only part fits' },
    input: {
      type: 'string',
      nargs: 1, // so that - is a value
      demandOption: true,
      describe:
        'rows of {text}, {messages} or {inputIds, labels?}: .jsonl, .parquet, .arrow, or - for JSON lines on standard input',
    },
    top: { type: 'number', describe: 'also the K likeliest tokens after the last one' },
    precision: shared.precision,
    format: shared.format,
    json: { type: 'boolean', default: true, hidden: true, describe: 'it always prints JSON lines' },
  },
  epilogue:
    'A line: {inputIds, logps, nll, tokens, top?}. logps[i] belongs to inputIds[i] given those before it (null at 0); nll is the sum over the scored tokens.',
  async run(options, { signal, print }) {
    const sdk = await import('../../index.js')
    const progress = progressPrinter()
    const model = await sdk.openModel({
      base: options.base,
      adapter: options.adapter,
      allowPartial: options['allow-partial'],
      precision: options.precision === 'fp32' ? 'strict' : 'fast',
      format: options.format,
      signal,
      onProgress: (at) => progress.show(...describeFetch(at)),
    })
    progress.end()
    try {
      const rows = options.input === '-' ? stdinRows() : sdk.fileSource(options.input).rows()
      for await (const { row, place } of rows) {
        signal.throwIfAborted()
        const scored = await model.score(row, { place, ...(options.top ? { top: options.top } : {}), signal })
        print(JSON.stringify(scored))
      }
    } finally {
      await model.close()
    }
  },
})
