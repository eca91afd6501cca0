// Loss of the steps as a line, held-out loss as marks.
import { Text } from 'ink'
import { drawChart } from '../chart.js'
import { fit } from '../text.js'
import { definePanel } from './panel.js'

export const curves = definePanel({
  title: 'loss',
  height: 9,
  span: 'full',
  priority: 1,
  Component({ state, width, height }) {
    const { steps, evaluations, step, start } = state
    const last = evaluations.at(-1)
    const legend = `⠒ training ${step ? step.loss.toFixed(4) : '–'}   ● held out ${last ? last.loss.toFixed(4) : '–'}`
    const lines = drawChart({
      width,
      height: height - 1,
      line: steps.map((event) => ({ x: event.step, y: event.loss })),
      marks: evaluations.map((event) => ({ x: event.step, y: event.loss })),
      maxX: start?.totalSteps ?? 1,
    })
    return (
      <>
        <Text>{fit(legend, width)}</Text>
        {lines.map((line, i) => (
          <Text key={i} color="cyan" wrap="truncate">
            {line}
          </Text>
        ))}
      </>
    )
  },
})
