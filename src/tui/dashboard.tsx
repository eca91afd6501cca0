// The dashboard of a run: panels laid out for the width and height of the screen.
import { Box, Text } from 'ink'
import { panels } from './panels/index.js'
import type { Panel } from './panels/panel.js'
import type { RunState } from './run-state.js'

/** From here on two half panels stand side by side. */
const wideColumns = 76
const frameLines = 2
const frameColumns = 4

/** The panels of each row of the screen. */
function layOut(columns: number, chosen: readonly Panel[]): Panel[][] {
  const rows: Panel[][] = []
  for (const panel of chosen) {
    const last = rows.at(-1)
    const pairs = columns >= wideColumns && panel.span === 'half' && last?.length === 1 && last[0]!.span === 'half'
    if (pairs) last.push(panel)
    else rows.push([panel])
  }
  return rows
}

const rowHeight = (row: readonly Panel[]) => Math.max(...row.map(({ height }) => height)) + frameLines

/** What fits, by priority: a screen that scrolls would flicker. */
function choose(columns: number, rows: number): Panel[][] {
  const all = Object.values<Panel>(panels)
  const byPriority = [...all].sort((a, b) => a.priority - b.priority)
  let chosen: Panel[] = []
  for (const panel of byPriority) {
    const wanted = all.filter((other) => chosen.includes(other) || other === panel)
    const lines = layOut(columns, wanted).reduce((sum, row) => sum + rowHeight(row), 0)
    if (lines <= rows || panel.priority === 0) chosen = wanted
  }
  return layOut(columns, chosen)
}

export interface DashboardProps {
  state: RunState
  columns: number
  rows: number
}

export function Dashboard({ state, columns, rows }: DashboardProps) {
  // The last line stays free, so that the terminal does not scroll
  return (
    <Box flexDirection="column" width={columns}>
      {choose(columns, rows - 1).map((row) => (
        <Box key={row.map(({ title }) => title).join()} flexDirection="row">
          {row.map((panel, i) => {
            const half = Math.floor(columns / 2)
            const outer = row.length === 1 ? columns : i === 0 ? half : columns - half
            const height = rowHeight(row)
            const width = outer - frameColumns
            const line = '─'.repeat(Math.max(0, outer - panel.title.length - 5))
            return (
              <Box key={panel.title} width={outer} height={height} flexDirection="column">
                <Text wrap="truncate">{`╭─ ${panel.title} ${line}╮`}</Text>
                <Box
                  height={height - 1}
                  borderStyle="round"
                  borderTop={false}
                  paddingX={1}
                  flexDirection="column"
                  overflow="hidden"
                >
                  <panel.Component state={state} width={width} height={height - frameLines} />
                </Box>
              </Box>
            )
          })}
        </Box>
      ))}
    </Box>
  )
}
