// What the stage itself measures at each step: rewards, margins, accuracies; divergence, lengths, clipped shares.
import { Text } from 'ink'
import { fit } from '../text.js'
import { definePanel } from './panel.js'

/** Times and rates are shown elsewhere. */
const isShown = (name: string) => !name.startsWith('perf/')

/** Entries as lines of at most `width` characters; what does not fit is left out. */
function layOut(entries: readonly string[], width: number, height: number): string[] {
  const lines: string[] = []
  for (const entry of entries) {
    const last = lines.at(-1)
    if (last !== undefined && last.length + entry.length + 3 <= width) lines[lines.length - 1] = `${last} · ${entry}`
    else if (lines.length < height) lines.push(fit(entry, width))
  }
  return lines
}

export const measures = definePanel({
  title: 'measures',
  height: 4,
  span: 'full',
  priority: 3,
  Component({ state, width, height }) {
    const entries = Object.entries(state.step?.metrics ?? {})
      .filter(([name]) => isShown(name))
      .map(([name, value]) => `${name} ${Number(value.toPrecision(4))}`)
    const lines = entries.length > 0 ? layOut(entries, width, height) : ['this stage measures its loss alone']
    return (
      <>
        {lines.map((line) => (
          <Text key={line} wrap="truncate">
            {line}
          </Text>
        ))}
      </>
    )
  },
})
