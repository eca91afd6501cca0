// Tokens per second, and how much of the processor's ceiling that is.
import { Text } from 'ink'
import { bar, sparkline } from '../chart.js'
import { fit, percent } from '../text.js'
import { definePanel } from './panel.js'

export const speed = definePanel({
  title: 'speed',
  height: 3,
  span: 'half',
  priority: 3,
  Component({ state, width }) {
    const { step, steps } = state
    const share = step?.ceilingShare
    const label = `of the ceiling ${share === undefined ? '–' : percent(share)} `
    return (
      <>
        <Text>{fit(`${step ? Math.round(step.tokensPerSecond) : '–'} tokens/s`, width)}</Text>
        <Text>
          {sparkline(
            steps.map((event) => event.tokensPerSecond),
            width,
          ) || ' '}
        </Text>
        <Text>
          {fit(
            share === undefined ? label : `${label}${bar(share, Math.max(6, Math.min(20, width - label.length)))}`,
            width,
          )}
        </Text>
      </>
    )
  },
})
