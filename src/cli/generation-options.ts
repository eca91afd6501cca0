// The options of sampling that `generate` and `chat` share, and what they become.
import { readFileSync } from 'node:fs'
import type { InferredOptionTypes, Options } from 'yargs'
import type { ResponseFormat, SamplingOptions } from '../index.js'
import { UsageError } from './command.js'

export const samplingFlags = {
  'max-new-tokens': { type: 'number', describe: 'stop after so many tokens' },
  temperature: { type: 'number', default: 0, describe: '0: greedy' },
  'top-k': { type: 'number', default: 0, describe: 'sample among the k likeliest tokens; 0: all' },
  'top-p': {
    type: 'number',
    default: 1,
    describe: 'sample among the likeliest tokens that reach this probability together',
  },
  'min-p': { type: 'number', default: 0, describe: 'leave out tokens below this share of the likeliest' },
  'repetition-penalty': { type: 'number', default: 1, describe: 'divide the logits of tokens that occurred' },
  'frequency-penalty': { type: 'number', default: 0, describe: 'take from a logit for each time it was generated' },
  'presence-penalty': { type: 'number', default: 0, describe: 'take once from the logits of what was generated' },
  'logit-bias': {
    type: 'string',
    array: true,
    default: [] as string[],
    nargs: 1,
    describe: 'ID=NUMBER, added to the logit of a token (repeatable)',
  },
  seed: { type: 'number', default: 0, describe: 'the same seed, the same text' },
} as const satisfies Record<string, Options>

const limits: Partial<Record<keyof typeof samplingFlags, readonly [low: number, high: number]>> = {
  'max-new-tokens': [0, Number.MAX_SAFE_INTEGER],
  temperature: [0, 100],
  'top-k': [0, Number.MAX_SAFE_INTEGER],
  'top-p': [0, 1],
  'min-p': [0, 1],
  'repetition-penalty': [Number.MIN_VALUE, 100],
  'frequency-penalty': [-100, 100],
  'presence-penalty': [-100, 100],
  seed: [Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER],
}
const whole = new Set(['max-new-tokens', 'top-k', 'seed'])

/** Sampling options of a command. @throws UsageError for a number out of range */
export function samplingOf(options: InferredOptionTypes<typeof samplingFlags>): SamplingOptions {
  for (const [name, [low, high]] of Object.entries(limits)) {
    const value = options[name as keyof typeof limits] as number | undefined
    if (value === undefined) continue
    if (!(value >= low && value <= high) || (whole.has(name) && !Number.isInteger(value)))
      throw new UsageError(
        `--${name} is ${value}; it must be ${whole.has(name) ? 'a whole number' : 'a number'} from ${low} to ${high}`,
      )
  }
  const logitBias = new Map(
    options['logit-bias'].map((text) => {
      const found = /^(\d+)=(-?\d+(?:\.\d+)?)$/.exec(text)
      if (!found) throw new UsageError(`--logit-bias ${text}: write ID=NUMBER, for example 42=-5`)
      return [Number(found[1]), Number(found[2])] as const
    }),
  )
  return {
    ...(options['max-new-tokens'] === undefined ? {} : { maxNewTokens: options['max-new-tokens'] }),
    temperature: options.temperature,
    topK: options['top-k'],
    topP: options['top-p'],
    minP: options['min-p'],
    repetitionPenalty: options['repetition-penalty'],
    frequencyPenalty: options['frequency-penalty'],
    presencePenalty: options['presence-penalty'],
    ...(logitBias.size > 0 ? { logitBias } : {}),
    seed: options.seed,
  }
}

/** The response format of --schema and --regex. */
export function responseFormatOf(options: { schema?: string; regex?: string }): ResponseFormat | undefined {
  if (options.regex !== undefined) return { regex: options.regex }
  if (options.schema === undefined) return undefined
  let text: string
  try {
    text = readFileSync(options.schema, 'utf8')
  } catch (error) {
    throw new UsageError(`--schema ${options.schema}: cannot be read (${(error as Error).message})`)
  }
  try {
    return { schema: JSON.parse(text) }
  } catch (error) {
    throw new UsageError(`--schema ${options.schema}: is not valid JSON (${(error as Error).message})`)
  }
}
