// `espalier score BASE --input rows.jsonl`: the log-probability of every token, one JSON line per row.
import { defineCommand, shared } from '../command.js'
import { openModelOf } from '../open-model.js'
import { stdinRows } from '../stdin-rows.js'

export const score = defineCommand({
  positionals: '<base>',
  summary: 'log-probabilities of the tokens of rows, one JSON line per row',
  options: {
    base: shared.base,
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
    const { sdk, model } = await openModelOf(options, {
      adapter: options.adapter,
      allowPartial: options['allow-partial'],
      signal,
    })
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
