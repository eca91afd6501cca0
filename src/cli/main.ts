// The command line (stop 1): words to a command of the index, errors to one readable message, the outcome to an exit code.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import yargs from 'yargs'
import { type CommandContext, exitCodes, UsageError } from './command.js'
import { commands } from './commands/index.js'
import { listenForInterrupt } from './interrupt.js'
import { packageFolder } from './package-folder.js'

const epilogue = `Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
ESPALIER_CACHE: folder of downloads and imported bases. ESPALIER_THREADS: number of threads.
ESPALIER_ISA forces an instruction set. ESPALIER_DEBUG=1 shows where an error came from.`

/** The message of an error and of what caused it, without a stack unless asked for. */
export function describeError(error: unknown, isVerbose: boolean): string {
  if (!(error instanceof Error)) return String(error)
  if (isVerbose && error.stack)
    return error.cause ? `${error.stack}\ncaused by ${describeError(error.cause, true)}` : error.stack
  return error.message || error.name
}

/** Runs one command line. @returns the exit code */
export async function main(argv: readonly string[]): Promise<number> {
  let isVerbose = Boolean(process.env.ESPALIER_DEBUG)
  let code: number = exitCodes.ok
  const interrupt = listenForInterrupt()
  const context: CommandContext = {
    signal: interrupt.signal,
    print: (text) => process.stdout.write(`${text}\n`),
    say: (text) => process.stderr.write(`${text}\n`),
  }
  // A reader that went away (`espalier score … | head`) is no failure
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(exitCodes.ok)
  })
  const parser = yargs([...argv])
    .scriptName('espalier')
    .usage('$0 <command>\n\nFine-tune language models on the machine you have.')
    .version(JSON.parse(readFileSync(join(packageFolder(), 'package.json'), 'utf8')).version)
    .alias({ help: 'h' })
    .parserConfiguration({ 'camel-case-expansion': true, 'duplicate-arguments-array': true })
    .option('verbose', { type: 'boolean', default: false, describe: 'show where an error came from' })
    .epilogue(epilogue)
    .wrap(Math.min(110, process.stdout.columns ?? 100))
    .strict()
    .recommendCommands()
    .demandCommand(1, 'name a command')
    .exitProcess(false)
    .fail((message, error) => {
      throw error ?? new UsageError(message)
    })
  for (const [name, command] of Object.entries(commands)) {
    parser.command(
      [name, command.positionals].filter(Boolean).join(' '),
      command.summary,
      (builder) => command.build(builder),
      async (options) => {
        isVerbose ||= Boolean(options.verbose)
        code = (await command.run(options, context)) ?? exitCodes.ok
      },
    )
  }
  try {
    await parser.parseAsync()
    return code
  } catch (error) {
    if (interrupt.signal.aborted && (error === interrupt.signal.reason || (error as Error)?.name === 'AbortError')) {
      context.say('interrupted')
      return exitCodes.interrupted
    }
    if (error instanceof UsageError) {
      context.say(
        `espalier: ${error.message}\nespalier ${argv[0] && commands[argv[0] as keyof typeof commands] ? `${argv[0]} ` : ''}--help shows what there is.`,
      )
      return exitCodes.usage
    }
    context.say(`espalier: ${describeError(error, isVerbose)}`)
    return exitCodes.failed
  } finally {
    interrupt.stop()
  }
}
