// `espalier serve BASE`: an OpenAI-compatible server over the base and its adapters, until SIGINT or SIGTERM.
import { basename } from 'node:path'
import { defineCommand, exitCodes, shared, UsageError } from '../command.js'
import { openModelOf } from '../open-model.js'

const logLevels = ['silent', 'fatal', 'error', 'warn', 'info', 'debug', 'trace'] as const

const maxPort = 65_535

/** `name=folder` → its parts. */
function namedFolder(text: string): [name: string, folder: string] {
  const at = text.indexOf('=')
  if (at <= 0 || at === text.length - 1)
    throw new UsageError(`--adapter ${text}: give a name and a PEFT folder, as in --adapter polite=runs/polite/adapter`)
  return [text.slice(0, at), text.slice(at + 1)]
}

const positive = (name: string, value: number, least = 1): number => {
  if (!Number.isInteger(value) || value < least)
    throw new UsageError(`--${name} must be a whole number of at least ${least}`)
  return value
}

/** The name of a base as it was asked for, without folders: what clients give as model. */
function nameOf(base: string): string {
  if (base.startsWith('hf:')) return base.slice('hf:'.length)
  return /[\\/]/.test(base) ? basename(base).replace(/\.gguf$/i, '') : base
}

const isLoopback = (host: string) => host === '::1' || host === 'localhost' || /^127\./.test(host)

export const serve = defineCommand({
  positionals: '<base>',
  summary: 'answer over HTTP as OpenAI does: chat, completions, adapters by model name',
  options: {
    base: shared.base,
    adapter: {
      type: 'string',
      array: true,
      nargs: 1,
      default: [] as string[],
      describe: 'NAME=FOLDER: a PEFT folder, chosen by its name as model (repeatable)',
    },
    name: { type: 'string', describe: "the base's name as model; default: BASE without its folders" },
    host: { type: 'string', default: '127.0.0.1', describe: 'the address to listen on' },
    port: { type: 'number', default: 8000, describe: 'the port; 0: any that is free' },
    'api-key': {
      type: 'string',
      array: true,
      nargs: 1,
      default: [] as string[],
      describe: 'ask for this key (repeatable); better in ESPALIER_API_KEYS, separated by commas',
    },
    'allow-adapter-loading': {
      type: 'string',
      nargs: 1,
      describe: 'let clients load and unload the adapters in this folder',
    },
    'max-concurrent': { type: 'number', default: 64, describe: 'sequences computed at a time' },
    'max-queue': { type: 'number', default: 256, describe: 'requests that wait; one more gets 429' },
    'max-choices': { type: 'number', default: 16, describe: 'choices (n) of one request' },
    'cache-mb': {
      type: 'number',
      describe: 'memory of keys and values; default: what the sequences may take, within a quarter of the free memory',
    },
    'max-sequence-tokens': {
      type: 'number',
      describe: "tokens of prompt and answer; default: the model's context, at most 8192",
    },
    'max-adapters': { type: 'number', default: 8, describe: 'adapters loaded at a time' },
    'max-prompt-tokens': { type: 'number', describe: 'tokens of a prompt; default: what a sequence takes' },
    'max-body-kb': { type: 'number', default: 1024, describe: 'size of a request' },
    'drain-seconds': { type: 'number', default: 30, describe: 'time that running requests get when the server ends' },
    'log-level': { choices: logLevels, default: 'info' as const, describe: 'JSON lines on standard error' },
    precision: shared.precision,
    format: shared.format,
    json: { type: 'boolean', default: false, describe: 'print {url, models} instead of a sentence when it listens' },
  },
  epilogue:
    'SIGINT or SIGTERM: no new requests, the running ones end, then the server; a second signal ends it at once.\n' +
    'Without a key everyone who can connect may ask; /health and /metrics never ask for one.',
  async run(options, { signal, print, say }) {
    const adapters = options.adapter.map(namedFolder)
    if (positive('port', options.port, 0) > maxPort) throw new UsageError(`--port must be at most ${maxPort}`)
    const keys = [...options['api-key'], ...(process.env.ESPALIER_API_KEYS ?? '').split(',')]
      .map((key) => key.trim())
      .filter(Boolean)
    const limits = {
      maxConcurrent: positive('max-concurrent', options['max-concurrent']),
      maxQueue: positive('max-queue', options['max-queue'], 0),
      maxChoices: positive('max-choices', options['max-choices']),
      maxBodyBytes: positive('max-body-kb', options['max-body-kb']) * 1024,
      drainSeconds: positive('drain-seconds', options['drain-seconds'], 0),
      ...(options['max-prompt-tokens'] === undefined
        ? {}
        : { maxPromptTokens: positive('max-prompt-tokens', options['max-prompt-tokens']) }),
    }
    const { 'cache-mb': cacheMb, 'max-sequence-tokens': maxSequenceTokens } = options
    const engine = {
      maxSequences: limits.maxConcurrent,
      maxAdapters: positive('max-adapters', options['max-adapters']),
      ...(cacheMb === undefined ? {} : { cacheBytes: positive('cache-mb', cacheMb) * 2 ** 20 }),
      ...(maxSequenceTokens === undefined
        ? {}
        : { maxSequenceTokens: positive('max-sequence-tokens', maxSequenceTokens, 2) }),
    }
    const { sdk, model } = await openModelOf(options, { engine, signal })
    try {
      const name = options.name ?? nameOf(options.base)
      for (const [adapter, folder] of adapters) {
        if (adapter === name) throw new UsageError(`--adapter ${adapter}=…: this is the name of the base`)
        await model.loadAdapter(adapter, folder)
      }
      const server = await sdk.serve({
        model,
        name,
        host: options.host,
        port: options.port,
        apiKeys: keys,
        adapterFolder: options['allow-adapter-loading'],
        limits,
        logLevel: options['log-level'],
      })
      if (keys.length === 0 && !isLoopback(server.host))
        say(
          `warning: ${server.host} can be reached from other machines and no API key is set: everyone there may use this server. Set ESPALIER_API_KEYS.`,
        )
      const models = [name, ...model.engine.adapters()]
      print(
        options.json
          ? JSON.stringify({ url: server.url, models })
          : `listening on ${server.url}/v1 with ${models.join(', ')}`,
      )
      await new Promise<void>((resolve) => {
        if (signal.aborted) resolve()
        else signal.addEventListener('abort', () => resolve(), { once: true })
      })
      await server.drain()
    } finally {
      await model.close()
    }
    return exitCodes.ok
  },
})
