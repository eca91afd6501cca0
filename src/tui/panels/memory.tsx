// Resident memory of the process, now and at its highest.
import { Text } from 'ink'
import { sparkline } from '../chart.js'
import { fit, megabytes } from '../text.js'
import { definePanel } from './panel.js'

export const memory = definePanel({
  title: 'memory',
  height: 2,
  span: 'half',
  priority: 4,
  Component({ state, width }) {
    const { step, steps, peakRssMb } = state
    const text = step ? `${megabytes(step.rssMb)}, highest ${megabytes(peakRssMb)}` : '–'
    return (
      <>
        <Text>{fit(text, width)}</Text>
        <Text>
          {sparkline(
            steps.map((event) => event.rssMb),
            width,
          ) || ' '}
        </Text>
      </>
    )
  },
})
