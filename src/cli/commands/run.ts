// `espalier run RECIPE`: trains, with a dashboard where the output is a terminal.
import { existsSync, readdirSync, statSync } from 'node:fs'
import { join, relative } from 'node:path'
import { defineCommand, exitCodes, shared, UsageError } from '../command.js'
import { duration, pairs } from '../table.js'

/** The run of a recipe that was begun last. */
function latestRun(name: string): string {
  const isRun = (entry: string) => entry.startsWith(`${name}-`) && existsSync(join('runs', entry, 'recipe.json'))
  const found = existsSync('runs') ? readdirSync('runs').filter(isRun) : []
  const [latest] = found.sort((a, b) => statSync(join('runs', b)).mtimeMs - statSync(join('runs', a)).mtimeMs)
  if (!latest) throw new UsageError(`no run of ${name} in runs/ to resume: name its folder (--resume=DIR)`)
  return join('runs', latest)
}

export const run = defineCommand({
  positionals: '<recipe>',
  summary: 'train as a recipe says',
  options: {
    recipe: { type: 'string', demandOption: true, describe: 'a recipe module (.ts, .js) or JSON file' },
    set: shared.set,
    'run-dir': { type: 'string', describe: 'folder of the run; default runs/<name>-<time>' },
    resume: {
      type: 'string',
      describe: 'go on after the last checkpoint of the run in this folder (default: the latest)',
    },
    'resume-fallback': { type: 'boolean', default: false, describe: 'pass over damaged checkpoints to an earlier one' },
    plain: { type: 'boolean', default: false, describe: 'lines instead of the dashboard' },
    json: {
      type: 'boolean',
      default: false,
      describe: 'the result as one JSON line on standard output, events on standard error',
    },
  },
  epilogue: 'SIGINT (Ctrl-C) finishes the step, writes a checkpoint and ends with 130; twice ends at once.',
  async run(options, { signal, print }) {
    if (options['run-dir'] && options.resume) throw new UsageError('--resume=DIR names the folder: leave out --run-dir')
    const sdk = await import('../../index.js')
    const { openDisplay } = await import('../../tui/index.js')
    const recipe = await sdk.loadRecipe(options.recipe, { set: options.set })
    const isResume = options.resume !== undefined
    const runDir = isResume ? options.resume || latestRun(recipe.name) : options['run-dir']
    const display = await openDisplay({
      name: recipe.name,
      stream: options.json ? process.stderr : process.stdout,
      isPlain: options.plain || options.json,
    })
    let result: import('../../index.js').RunResult
    try {
      const going = sdk.run(recipe, {
        ...(runDir ? { runDir } : {}),
        resume: isResume,
        resumeFallback: options['resume-fallback'],
        signal,
        listeners: [display.listener],
      })
      result = await going.result
    } finally {
      await display.close()
    }
    if (options.json) print(JSON.stringify(result))
    else print(summary(result, options.recipe))
    return result.reason === 'interrupted' ? exitCodes.interrupted : exitCodes.ok
  },
})

function summary(result: import('../../index.js').RunResult, recipePath: string): string {
  const runDir = relative(process.cwd(), result.runDir) || '.'
  const held = (evaluation: typeof result.before) =>
    evaluation &&
    [
      `loss ${evaluation.loss.toFixed(4)}`,
      ...Object.entries(evaluation.metrics).map(([key, value]) => `${key} ${Number(value.toFixed(4))}`),
    ].join(', ')
  const rows = pairs(
    [
      ['ended', `${result.reason} after step ${result.step} of ${result.totalSteps}`],
      ['held out, before', held(result.before)],
      ['held out, after', held(result.after)],
      ['speed', `${Math.round(result.tokensPerSecond)} tokens/s, ${duration(result.trainSeconds)} of training`],
      ['peak memory', `${Math.round(result.peakRssMb)} MB`],
      ['run directory', runDir],
      ['adapter', result.adapter && (relative(process.cwd(), result.adapter) || '.')],
    ],
    '  ',
  )
  if (result.reason !== 'interrupted') return rows
  return `${rows}\n\nTo go on: espalier run ${recipePath} --resume=${runDir}`
}
