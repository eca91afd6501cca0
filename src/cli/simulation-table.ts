// The simulation of annotation as a table.
import type { RecipeSimulation } from '../index.js'
import { integer, pairs, percent } from './table.js'

/** The learning curve, at most `most` of its points. */
function curveTable({ curve, targetAccuracy }: RecipeSimulation, most = 14): string {
  const every = Math.max(1, Math.ceil(curve.length / most))
  const shown = curve.filter((_, i) => i % every === 0 || i === curve.length - 1)
  const cell = (accuracy: number) => `${percent(accuracy)}${accuracy >= targetAccuracy ? ' *' : '  '}`.padStart(10)
  return [
    `${'labels'.padStart(8)}${'active'.padStart(10)}${'random'.padStart(10)}`,
    ...shown.map(({ labels, active, random }) => `${integer(labels).padStart(8)}${cell(active)}${cell(random)}`),
  ].join('\n')
}

export function describeSimulation(result: RecipeSimulation): string {
  const { labelShare, randomLabelShare, pairs: pool } = result
  return `${pairs([
    ['pairs', `${integer(pool)} to choose from, ${integer(result.heldOutPairs)} held out, ${result.data}`],
    ['all labels', `${percent(result.accuracyOfAll)} of held-out pairs right`],
    ['* target', `${percent(result.targetAccuracy)}`],
    ['active', `${percent(labelShare)} of the labels (${integer(labelShare * pool)})`],
    ['random', `${percent(randomLabelShare)} of the labels (${integer(randomLabelShare * pool)})`],
    ['saved', `${percent(1 - labelShare / randomLabelShare)} of the labels, mean of ${result.seeds} seeds`],
  ])}\n\n${curveTable(result)}`
}
