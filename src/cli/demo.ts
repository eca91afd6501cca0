// `npm run demo`: fetches the base, trains recipes/quickstart.ts under the dashboard, and shows what that changed: the
// evaluation on held-out rows and one answer, before and after. Without a network it trains a tiny model on a tiny corpus.
import { join } from 'node:path'
import type { ResolvedRecipe, RunResult } from '../index.js'
import { exitCodes } from './command.js'
import { listenForInterrupt } from './interrupt.js'
import { describeError } from './main.js'
import { packageFolder } from './package-folder.js'
import { describeFetch, progressPrinter } from './progress.js'
import { duration, pairs, percent } from './table.js'

const usage = `usage: npm run demo [-- --json] [-- --run-dir=DIR]

  --json         the figures as one JSON object on the last line
  --run-dir=DIR  default runs/quickstart-<time>
  --offline      as without a network: the tiny model
  --plain        lines instead of the dashboard`

interface Options {
  json: boolean
  plain: boolean
  offline: boolean
  runDir: string | undefined
}

function parse(argv: readonly string[]): Options | undefined {
  const options: Options = { json: false, plain: false, offline: false, runDir: undefined }
  for (const word of argv) {
    if (word === '--json') options.json = true
    else if (word === '--plain') options.plain = true
    else if (word === '--offline') options.offline = true
    else if (word.startsWith('--run-dir=')) options.runDir = word.slice('--run-dir='.length)
    else return undefined
  }
  return options
}

type Sdk = typeof import('../index.js')

/** The recipe that can run here: the real base, or the tiny one that the repository carries. */
async function chooseRecipe(sdk: Sdk, options: Options, say: (text: string) => void, signal: AbortSignal) {
  const load = (name: string) => sdk.loadRecipe(join(packageFolder(), 'recipes', `${name}.ts`))
  const recipe = await load('quickstart')
  const progress = progressPrinter()
  try {
    const source = typeof recipe.base === 'string' ? recipe.base : recipe.base.source
    const onProgress: (at: import('../index.js').FetchProgress) => void = (at) => progress.show(...describeFetch(at))
    await sdk.prepareBase(source, { signal, onProgress, offline: options.offline })
    progress.end()
    return recipe
  } catch (error) {
    progress.end()
    if (signal.aborted || !(error instanceof sdk.BaseUnavailableError)) throw error
    say(
      `${error.message}\n\nGoing on with a tiny model and a tiny corpus from the repository: this shows that everything works, not what it is good for.\n`,
    )
    return load('tiny')
  }
}

interface Figures {
  metric: string
  before: number
  after: number
}

/** Accuracy where rows have choices, else the loss. */
function figuresOf({ before, after }: RunResult): Figures {
  const metric = before?.metrics['eval/accuracy'] === undefined ? 'eval/loss' : 'eval/accuracy'
  const value = (evaluation: RunResult['before']) =>
    (metric === 'eval/loss' ? evaluation?.loss : evaluation?.metrics[metric]) ?? Number.NaN
  return { metric, before: value(before), after: value(after) }
}

/** One held-out row answered by base and adapter. */
async function answers(sdk: Sdk, recipe: ResolvedRecipe, adapter: string, signal: AbortSignal) {
  const rows =
    recipe.data.dataset && (await recipe.data.dataset.load({ seed: recipe.stage.seed, log: () => {} })).heldOut
  let shown: { prompt: string | import('../index.js').ChatMessage[]; text: string; expected: string } | undefined
  for await (const row of rows ?? []) {
    const messages = row.messages as import('../index.js').ChatMessage[] | undefined
    shown = messages
      ? {
          prompt: messages.slice(0, -1),
          text: String(messages.at(-2)?.content),
          expected: String(messages.at(-1)?.content),
        }
      : { prompt: String(row.prompt), text: String(row.prompt), expected: String(row.completion) }
    break
  }
  if (!shown) return undefined
  const base =
    typeof recipe.base === 'string' ? { base: recipe.base } : { base: recipe.base.source, format: recipe.base.format }
  const answer = async (peft: string | undefined) => {
    const model = await sdk.openModel({ ...base, adapter: peft, signal })
    try {
      return (await model.generate(shown.prompt, { maxNewTokens: 24, raw: true, signal }).result).text.trim()
    } finally {
      await model.close()
    }
  }
  return { ...shown, base: await answer(undefined), adapter: await answer(adapter) }
}

async function demo(options: Options, signal: AbortSignal): Promise<number> {
  const stream = options.json ? process.stderr : process.stdout
  const say = (text: string) => void stream.write(`${text}\n`)
  const sdk = await import('../index.js')
  const { openDisplay } = await import('../tui/index.js')
  const recipe = await chooseRecipe(sdk, options, say, signal)

  const started = performance.now()
  const display = await openDisplay({ name: recipe.name, stream, isPlain: options.plain || options.json })
  let base = ''
  let result: RunResult
  try {
    const going = sdk.run(recipe, {
      ...(options.runDir ? { runDir: options.runDir } : {}),
      signal,
      listeners: [
        display.listener,
        (event) => {
          if (event.type === 'runStart') base = event.base
        },
      ],
    })
    result = await going.result
  } finally {
    await display.close()
  }
  if (result.reason === 'interrupted') {
    say(`interrupted; go on with: npx espalier run recipes/quickstart.ts --resume=${result.runDir}`)
    return exitCodes.interrupted
  }
  const shown = await answers(sdk, recipe, result.adapter!, signal)
  const totalSeconds = (performance.now() - started) / 1000
  const figures = figuresOf(result)
  const show = (value: number) => (figures.metric === 'eval/accuracy' ? percent(value) : value.toFixed(4))
  const heldOutRows = result.before?.metrics['eval/rows'] ?? 0
  if (shown) {
    say(`\nA held-out row:\n\n${shown.text.replace(/^/gm, '  │ ')}\n`)
    say(
      pairs(
        [
          ['base', shown.base],
          ['adapter', shown.adapter],
          ['expected', shown.expected],
        ],
        '  ',
      ),
    )
  }
  say(
    `\n${pairs(
      [
        [`${figures.metric} before`, `${show(figures.before)} on ${heldOutRows} held-out rows`],
        [`${figures.metric} after`, show(figures.after)],
        ['base', base],
        [
          'time',
          `${duration(totalSeconds)}, ${duration(result.trainSeconds)} of it training and evaluating, at ${Math.round(result.tokensPerSecond)} tokens/s`,
        ],
        ['peak memory', `${Math.round(result.peakRssMb)} MB`],
        ['adapter', result.adapter!],
      ],
      '  ',
    )}\n`,
  )
  if (options.json) {
    const { trainSeconds, tokensPerSecond, adapter } = result
    const peakRssMb = Math.max(result.peakRssMb, process.resourceUsage().maxRSS / 1024)
    process.stdout.write(
      `${JSON.stringify({ ...figures, heldOutRows, trainSeconds, totalSeconds, tokensPerSecond, peakRssMb, adapter, base })}\n`,
    )
  }
  return exitCodes.ok
}

const options = parse(process.argv.slice(2))
if (!options) {
  process.stderr.write(`${usage}\n`)
  process.exit(exitCodes.usage)
}
const interrupt = listenForInterrupt()
try {
  process.exitCode = await demo(options, interrupt.signal)
} catch (error) {
  const isInterrupt = interrupt.signal.aborted
  process.stderr.write(
    isInterrupt ? 'interrupted\n' : `demo: ${describeError(error, Boolean(process.env.ESPALIER_DEBUG))}\n`,
  )
  process.exitCode = isInterrupt ? exitCodes.interrupted : exitCodes.failed
} finally {
  interrupt.stop()
}
