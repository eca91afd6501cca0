// What happened: evaluations, checkpoints, warnings, errors.
import { Text } from 'ink'
import type { LogLine } from '../run-state.js'
import { fit } from '../text.js'
import { definePanel } from './panel.js'

const signs: Record<LogLine['kind'], string> = { info: '·', warning: '!', error: '✘' }

export const log = definePanel({
  title: 'log',
  height: 5,
  span: 'full',
  priority: 5,
  Component({ state, width, height }) {
    const lines = state.log.slice(-height)
    if (lines.length === 0) return <Text dimColor>nothing yet</Text>
    return lines.map(({ kind, text }, i) => (
      <Text key={i} bold={kind === 'error'}>
        {fit(`${signs[kind]} ${text}`, width)}
      </Text>
    ))
  },
})
