// `espalier generate BASE --prompt TEXT`: continues a prompt, greedily or by sampling.
import { defineCommand, shared } from '../command.js'
import { describeFetch, progressPrinter } from '../progress.js'

export const generate = defineCommand({
  positionals: '<base>',
  summary: 'continue a prompt',
  options: {
    base: {
      type: 'string',
      demandOption: true,
      describe: 'a base directory, a .gguf file, a Hugging Face folder, hf:org/name, or a known name',
    },
    prompt: {
      type: 'string',
      nargs: 1, // so that it may begin with a dash
      demandOption: true,
      describe: 'what to answer, through the chat template where the base has one',
    },
    system: { type: 'string', nargs: 1, describe: 'a system message before it' },
    raw: { type: 'boolean', default: false, describe: 'continue the prompt as plain text, without template' },
    adapter: { type: 'string', describe: 'a PEFT folder' },
    'max-new-tokens': { type: 'number', default: 128, describe: 'stop after so many tokens' },
    temperature: { type: 'number', default: 0, describe: '0: greedy' },
    'top-k': { type: 'number', default: 0, describe: 'sample among the k likeliest tokens; 0: all' },
    'top-p': {
      type: 'number',
      default: 1,
      describe: 'sample among the likeliest tokens that reach this probability together',
    },
    seed: { type: 'number', default: 0, describe: 'the same seed, the same text' },
    precision: shared.precision,
    format: shared.format,
    json: shared.json,
  },
  async run(options, { signal, print }) {
    const sdk = await import('../../index.js')
    const progress = progressPrinter()
    const model = await sdk.openModel({
      base: options.base,
      adapter: options.adapter,
      precision: options.precision === 'fp32' ? 'strict' : 'fast',
      format: options.format,
      signal,
      onProgress: (at) => progress.show(...describeFetch(at)),
    })
    progress.end()
    try {
      const messages = [
        ...(options.system === undefined ? [] : [{ role: 'system', content: options.system }]),
        { role: 'user', content: options.prompt },
      ]
      const stream = model.generate(options.raw || !model.template ? options.prompt : messages, {
        maxNewTokens: options['max-new-tokens'],
        temperature: options.temperature,
        topK: options['top-k'],
        topP: options['top-p'],
        seed: options.seed,
        raw: options.raw,
        signal,
      })
      if (!options.json) for await (const { text } of stream) process.stdout.write(text)
      print(options.json ? JSON.stringify({ base: model.name, ...(await stream.result) }) : '')
    } finally {
      await model.close()
    }
  },
})
