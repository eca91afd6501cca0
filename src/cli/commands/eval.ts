// `espalier eval RECIPE`: base or adapter on the held-out rows of a recipe.
import { defineCommand, shared } from '../command.js'
import { describeFetch, progressPrinter } from '../progress.js'
import { integer, pairs, percent } from '../table.js'

export const evaluate = defineCommand({
  positionals: '<recipe>',
  summary: 'evaluate base or adapter on the held-out rows of a recipe',
  options: {
    recipe: { type: 'string', demandOption: true, describe: 'a recipe module (.ts, .js) or JSON file' },
    adapter: { type: 'string', describe: 'a PEFT folder, for example runs/<name>/adapter; absent: the base alone' },
    'max-rows': { type: 'number', describe: 'use the first rows only' },
    precision: shared.precision,
    set: shared.set,
    json: shared.json,
  },
  async run(options, { signal, print, say }) {
    const sdk = await import('../../index.js')
    const recipe = await sdk.loadRecipe(options.recipe, { set: options.set })
    const progress = progressPrinter()
    const result = await sdk.evaluate(recipe, {
      ...(options.adapter ? { adapter: options.adapter } : {}),
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
  },
})
