// `espalier eval RECIPE`: base beside adapter on the held-out rows of a recipe.
import type { AdapterEvaluation, Estimate } from '../../index.js'
import { defineCommand, shared } from '../command.js'
import { describeFetch, progressPrinter } from '../progress.js'
import { integer, pairs, percent } from '../table.js'

/** Shown as percentages where every value is a share. */
const isShare = ({ low, high }: Estimate) => low >= 0 && high <= 1

/** A value with its interval, for example 83.3 % (78.1 to 88.0). */
function show({ value, low, high }: Estimate, asShare: boolean, isSigned = false): string {
  const sign = (x: number, text: string) => (isSigned && x > 0 ? `+${text}` : text)
  const digits = asShare ? 1 : 3
  const of = (x: number) => sign(x, (asShare ? 100 * x : x).toFixed(digits))
  return `${of(value)}${asShare ? ' %' : ''} (${of(low)} to ${of(high)})`
}

/** One line per metric: base, adapter and the difference. */
function table(metrics: AdapterEvaluation['metrics']): string {
  const lines = Object.entries(metrics).map(([name, { base, adapter, difference }]) => {
    const asShare = [base, adapter].every((estimate) => !estimate || isShare(estimate))
    const cell = (estimate: Estimate | undefined, isSigned = false) =>
      estimate ? show(estimate, asShare, isSigned) : ''
    return [name, cell(base), cell(adapter), cell(difference, true)]
  })
  const rows = [['', 'base', 'adapter', 'difference'], ...lines]
  const used = rows[0]!.map((_, i) => i === 0 || lines.some((line) => line[i]))
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)))
  return rows
    .map((row) =>
      row
        .map((text, i) => (used[i] ? text.padEnd(widths[i]! + 2) : ''))
        .join('')
        .trimEnd(),
    )
    .join('\n')
}

export const evaluate = defineCommand({
  positionals: '<recipe>',
  summary: 'evaluate a base, and an adapter beside it, on the held-out rows of a recipe',
  options: {
    recipe: { type: 'string', demandOption: true, describe: 'a recipe module (.ts, .js) or JSON file' },
    adapter: { type: 'string', describe: 'a PEFT folder, for example runs/<name>/adapter; absent: the base alone' },
    compare: { type: 'boolean', default: true, describe: '--no-compare: the adapter alone, in half the time' },
    metric: {
      type: 'string',
      array: true,
      default: [] as string[],
      nargs: 1,
      describe: 'only this one: perplexity, accuracy, exactMatch or a metric of the data (repeatable)',
    },
    'max-new-tokens': { type: 'number', describe: 'tokens of a generated answer; default by the answers of the data' },
    'max-rows': { type: 'number', describe: 'use the first rows only' },
    precision: shared.precision,
    set: shared.set,
    stage: shared.stage,
    json: shared.json,
  },
  epilogue:
    'accuracy compares the log-probabilities of the answers that data.choices names. exactMatch and the metrics of the data are over generated (greedy) answers. Intervals are of 95 %, by the bootstrap; a difference is paired by rows.',
  async run(options, { signal, print, say }) {
    const sdk = await import('../../index.js')
    const recipe = await sdk.loadRecipe(options.recipe, { set: options.set, stage: options.stage })
    const progress = progressPrinter()
    const result = await sdk.evaluate(recipe, {
      ...(options.adapter ? { adapter: options.adapter } : {}),
      compare: options.compare,
      ...(options.metric.length > 0 ? { metrics: options.metric } : {}),
      ...(options['max-new-tokens'] ? { maxNewTokens: options['max-new-tokens'] } : {}),
      ...(options['max-rows'] ? { maxRows: options['max-rows'] } : {}),
      precision: options.precision === 'fp32' ? 'strict' : 'fast',
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
    if (options.json) return void print(JSON.stringify(result))
    print(
      pairs([
        ['base', result.base],
        ['adapter', result.adapter ?? '(none)'],
        ['rows', integer(result.rows)],
        ['loss', `${result.loss.toFixed(4)} nats per target token over ${integer(result.tokens)}`],
        ['accuracy', result.accuracy === undefined ? undefined : percent(result.accuracy)],
      ]),
    )
    if (Object.keys(result.metrics).length > 0) print(`\n${table(result.metrics)}`)
  },
})
