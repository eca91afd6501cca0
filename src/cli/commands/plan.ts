// `espalier plan RECIPE`: rows as the model will see them, steps, memory and time, before anything is trained.
import type { DataReport, PlanReport, PreviewRow } from '../../index.js'
import { defineCommand, exitCodes, shared } from '../command.js'
import { describeFetch, progressPrinter } from '../progress.js'
import { duration, integer, pairs, percent } from '../table.js'

/** Trained text in green, or in ⟦ ⟧ where there is no colour. */
function marked(row: PreviewRow, hasColour: boolean): string {
  const mark = (text: string) => (hasColour ? `\x1b[32m${text}\x1b[39m` : `⟦${text}⟧`)
  const text = row.runs.map((run) => (run.isTrained ? mark(run.text) : run.text)).join('')
  return `${row.place}: ${row.numTrained} of ${row.length} tokens trained\n${text.replace(/^/gm, '  │ ')}`
}

function dataLines(name: string, report: DataReport): [string, string][] {
  const { lengthQuantiles: q } = report
  const lost = [
    report.truncated && `${report.truncated} cut (${integer(report.truncatedTokens)} tokens)`,
    report.split && `${report.split} split`,
    report.droppedTooLong && `${report.droppedTooLong} too long`,
    report.droppedWithoutTarget && `${report.droppedWithoutTarget} without a trained token`,
    report.droppedEmpty && `${report.droppedEmpty} empty`,
    report.ties && `${report.ties} ties`,
  ].filter(Boolean)
  return [
    [`${name} rows`, `${integer(report.rows)} ${report.type} from ${integer(report.sourceRows)} of ${report.source}`],
    ...(report.groups === undefined
      ? []
      : [
          [
            `${name} groups`,
            `${integer(report.groups)}, mean tokens ${report.meanLengths!.map(integer).join(' and ')}`,
          ] as [string, string],
        ]),
    [`${name} tokens`, `${integer(report.tokens)}, ${percent(report.targetTokens / report.tokens)} trained`],
    [
      `${name} lengths`,
      Object.entries(q)
        .map(([key, value]) => `${key} ${value}`)
        .join('  '),
    ],
    [`${name} losses`, lost.length > 0 ? lost.join(', ') : 'no row cut or left out'],
    ...(report.ignoredColumns.length > 0
      ? [[`${name} columns`, `nobody reads ${report.ignoredColumns.join(', ')}`] as [string, string]]
      : []),
  ]
}

function describe(report: PlanReport, hasColour: boolean): string {
  const { data, memory, time } = report
  const mb = (value: number) => `${integer(value)} MB`
  const rows = pairs([
    ['base', report.base],
    ['device', report.device],
    ...(data ? dataLines('train', data.train) : []),
    ...(data?.heldOut ? dataLines('held-out', data.heldOut) : []),
    ['held-out rows', integer(report.heldOutRows)],
    [
      'steps',
      `${integer(report.totalSteps)} of ${integer(report.tokensPerStep)} tokens (the first: ${integer(report.targetTokensPerStep)} trained)`,
    ],
    ['trainable', `${integer(report.trainableParameters)} parameters`],
    [
      'memory',
      `${mb(memory.totalMb)}: ${mb(memory.plannedMb)} planned, ${mb(memory.processMb)} the process; ${mb(memory.availableMb)} available`,
    ],
    [
      'time',
      time &&
        `${duration(time.totalSeconds)}: ${duration(time.secondsPerStep)} a step, ${duration(time.evaluationSeconds)} an evaluation, ${Math.round(time.tokensPerSecond)} tokens/s`,
    ],
  ])
  const preview = data?.rows.map((row) => marked(row, hasColour)) ?? []
  const verdict = memory.fits
    ? []
    : [
        'This does not fit. Lower stage.maxLength or stage.microBatchSize (raise gradientAccumulationSteps instead), set stage.memoryBudgetMb, or take a smaller base.',
      ]
  return [...preview, rows, ...verdict].join('\n\n')
}

export const plan = defineCommand({
  positionals: '<recipe>',
  summary: 'show rows, steps, memory and time of a run without training',
  options: {
    recipe: { type: 'string', demandOption: true, describe: 'a recipe module (.ts, .js) or JSON file' },
    set: shared.set,
    stage: shared.stage,
    json: shared.json,
  },
  epilogue: 'Ends with 1 where the run would not fit into memory.',
  async run(options, { signal, print, say }) {
    const sdk = await import('../../index.js')
    const recipe = await sdk.loadRecipe(options.recipe, { set: options.set, stage: options.stage })
    const progress = progressPrinter()
    const report = await sdk.plan(recipe, {
      signal,
      emit(event) {
        if (event.type === 'warning') say(`warning: ${event.message}`)
        if (event.type !== 'progress') return
        const { task, done, total, unit } = event
        progress.show(
          ...describeFetch({
            phase: unit === 'bytes' ? 'download' : 'import',
            message: task,
            done,
            total: total ?? null,
          }),
        )
      },
    })
    progress.end()
    if (options.json) print(JSON.stringify(report))
    else print(describe(report, Boolean(process.stdout.isTTY) && !process.env.NO_COLOR))
    return report.memory.fits ? exitCodes.ok : exitCodes.failed
  },
})
