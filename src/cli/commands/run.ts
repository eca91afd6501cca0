// `espalier run RECIPE`: trains, with a dashboard where the output is a terminal.
import { existsSync, readdirSync, statSync } from 'node:fs'
import { join, relative } from 'node:path'
import type { PipelineResult, RunResult } from '../../index.js'
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
  summary: 'train as a recipe says, one stage or several',
  options: {
    recipe: { type: 'string', demandOption: true, describe: 'a recipe module (.ts, .js) or JSON file' },
    set: shared.set,
    'run-dir': {
      type: 'string',
      describe: 'folder of the run; default runs/<name>-<time>, of several stages runs/<name>',
    },
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
    const recipe = await sdk.loadRecipeFile(options.recipe, { set: options.set })
    const isResume = options.resume !== undefined
    const stages = sdk.isPipeline(recipe) ? recipe : undefined
    if (stages && isResume) {
      throw new UsageError('a recipe of several stages goes on by itself when it is run again: leave out --resume')
    }
    const runDir = isResume ? options.resume || latestRun(recipe.name) : options['run-dir']
    const display = await openDisplay({
      name: recipe.name,
      stream: options.json ? process.stderr : process.stdout,
      isPlain: options.plain || options.json,
    })
    const how = {
      ...(runDir ? { runDir } : {}),
      resumeFallback: options['resume-fallback'],
      signal,
      listeners: [display.listener],
    }
    let result: RunResult | PipelineResult
    try {
      const going = sdk.isPipeline(recipe)
        ? sdk.runPipeline(recipe, how)
        : sdk.run(recipe, { ...how, resume: isResume })
      result = await going.result
    } finally {
      await display.close()
    }
    if (options.json) print(JSON.stringify(result))
    else print('stages' in result ? pipelineSummary(result, options.recipe) : summary(result, options.recipe))
    return result.reason === 'interrupted' ? exitCodes.interrupted : exitCodes.ok
  },
})

/** Every stage's summary under its name. */
function pipelineSummary(result: PipelineResult, recipePath: string): string {
  const parts = Object.entries(result.stages).map(
    ([name, stage]) => `${name}${stage.isSkipped ? ' (finished before)' : ''}\n${rowsOf(stage)}`,
  )
  if (result.reason === 'interrupted') parts.push(`To go on: espalier run ${recipePath}`)
  return parts.join('\n\n')
}

function summary(result: RunResult, recipePath: string): string {
  const rows = rowsOf(result)
  if (result.reason !== 'interrupted') return rows
  return `${rows}\n\nTo go on: espalier run ${recipePath} --resume=${relative(process.cwd(), result.runDir) || '.'}`
}

function rowsOf(result: RunResult): string {
  const runDir = relative(process.cwd(), result.runDir) || '.'
  const held = (evaluation: typeof result.before) =>
    evaluation &&
    [
      `loss ${evaluation.loss.toFixed(4)}`,
      ...Object.entries(evaluation.metrics).map(([key, value]) => `${key} ${Number(value.toFixed(4))}`),
    ].join(', ')
  return pairs(
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
}
