// What base and adapter say to the prompts of the recipe.
import { Text } from 'ink'
import { fit } from '../text.js'
import { definePanel } from './panel.js'

export const samples = definePanel({
  title: 'samples',
  height: 4,
  span: 'half',
  priority: 6,
  Component({ state, width, height }) {
    const newest = state.samples.slice(-Math.max(1, Math.floor(height / 2)))
    if (newest.length === 0) return <Text dimColor>none yet</Text>
    return newest.map(({ prompt, source, step, text }) => (
      <Text key={`${source} ${prompt}`} wrap="truncate">
        {fit(`? ${prompt}`, width)}
        {'\n'}
        {fit(`${source === 'base' ? 'base' : `step ${step}`}: ${text}`, width)}
      </Text>
    ))
  },
})
