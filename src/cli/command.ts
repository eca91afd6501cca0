// What a command is: its words, its options, and a function over the SDK. One file each in commands/, one line in index.ts.
import type { Argv, InferredOptionTypes, Options } from 'yargs'

export interface CommandContext {
  /** Aborted by the first SIGINT or SIGTERM; a second one ends the process. */
  readonly signal: AbortSignal
  /** Data, for standard output. */
  print(text: string): void
  /** What is going on, for standard error. */
  say(text: string): void
}

export interface CommandDefinition<Words extends Record<string, Options>> {
  /** The words after the command's name: `<recipe>`, `[dir]`. */
  readonly positionals?: string
  readonly summary: string
  /** Positionals and options by name. */
  readonly options: Words
  /** Lines below the options of --help. */
  readonly epilogue?: string
  /** Returns the exit code; nothing is 0. */
  run(options: InferredOptionTypes<Words>, context: CommandContext): Promise<number | undefined>
}

/** A command with its options forgotten, as the index holds it. */
export interface Command {
  readonly positionals: string
  readonly summary: string
  build(parser: Argv): Argv
  run(options: Record<string, unknown>, context: CommandContext): Promise<number | undefined>
}

/** A mistake in how a command was called: exit code 2. */
export class UsageError extends Error {}

export const exitCodes = { ok: 0, failed: 1, usage: 2, interrupted: 130 } as const

export function defineCommand<const Words extends Record<string, Options>>(
  definition: CommandDefinition<Words>,
): Command {
  const positionals = definition.positionals ?? ''
  const names = new Set([...positionals.matchAll(/[<[]([\w-]+)/g)].map((match) => match[1]!))
  return {
    positionals,
    summary: definition.summary,
    build(parser) {
      for (const [name, option] of Object.entries(definition.options)) {
        if (names.has(name)) parser.positional(name, option as never)
        else parser.option(name, option)
      }
      return definition.epilogue ? parser.epilogue(definition.epilogue) : parser
    },
    run: (options, context) => definition.run(options as InferredOptionTypes<Words>, context),
  }
}

/** Options that several commands share. */
export const shared = {
  base: {
    type: 'string',
    demandOption: true,
    describe: 'a base directory, a .gguf file, a Hugging Face folder, hf:org/name, or a known name',
  },
  json: { type: 'boolean', default: false, describe: 'one JSON value on standard output, nothing else' },
  set: {
    type: 'string',
    array: true,
    default: [] as string[],
    nargs: 1,
    describe: 'change the recipe: path.to.key=value (repeatable)',
  },
  stage: { type: 'string', describe: 'of a recipe of several stages: which; default the first' },
  precision: {
    choices: ['fast', 'fp32'] as const,
    default: 'fast' as const,
    describe: 'fp32: strict arithmetic and activations',
  },
  format: {
    choices: ['source', 'int4', 'nf4', 'none'] as const,
    describe: "what matrices become: the source's own 4 bits, else int4; none keeps them unquantized",
  },
} as const satisfies Record<string, Options>
