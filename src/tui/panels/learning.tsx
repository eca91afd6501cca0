// What the optimizer does, and the newest measures of held-out rows.
import { Text } from 'ink'
import { sparkline } from '../chart.js'
import { fit } from '../text.js'
import { definePanel } from './panel.js'

export const learning = definePanel({
  title: 'learning',
  height: 3,
  span: 'half',
  priority: 2,
  Component({ state, width }) {
    const { step, steps, evaluations } = state
    const metrics = Object.entries(evaluations.at(-1)?.metrics ?? {}).map(
      ([key, value]) => `${key.replace(/^eval\//, '')} ${Number(value.toFixed(4))}`,
    )
    const rate = `rate ${step ? step.learningRate.toExponential(2) : '–'} `
    return (
      <>
        <Text>
          {fit(
            `${rate}${sparkline(
              steps.map((event) => event.learningRate),
              width - rate.length,
            )}`,
            width,
          )}
        </Text>
        <Text>{fit(`gradient norm ${step ? step.gradNorm.toPrecision(3) : '–'}`, width)}</Text>
        <Text>{fit(metrics.length > 0 ? `held out: ${metrics.join(', ')}` : 'held out: –', width)}</Text>
      </>
    )
  },
})
