// Which run, where it stands, and how long it still takes.
import { Text } from 'ink'
import { bar } from '../chart.js'
import type { RunState } from '../run-state.js'
import { clock, fit, percent } from '../text.js'
import { definePanel } from './panel.js'

/** Signs as well as words: nothing depends on colour. */
const signs: Record<RunState['status'], string> = {
  preparing: '… preparing',
  training: '▶ training',
  completed: '✔ completed',
  earlyStopping: '✔ stopped early',
  interrupted: '‖ interrupted',
  failed: '✘ failed',
}

function progressLine({ progress, start, step }: RunState, width: number): string {
  if (progress) {
    const share = progress.total ? progress.done / progress.total : 0
    const counts = progress.total ? ` ${percent(share)}` : ''
    const task = fit(progress.task.split(':')[0]!, Math.max(10, width - 24))
    return `${progress.total ? `${bar(share, 12)} ` : ''}${task}${counts}`
  }
  if (!start) return 'opening base and data'
  const done = step?.step ?? start.startStep
  const text = ` step ${done}/${start.totalSteps}  epoch ${(step?.epoch ?? 0).toFixed(2)}  left ${step ? clock(step.etaSeconds) : '–'}`
  return `${bar(done / Math.max(1, start.totalSteps), Math.max(8, Math.min(40, width - text.length)))}${text}`
}

const stageOf = ({ stage }: RunState) => (stage ? `  stage ${stage.index + 1} of ${stage.total}: ${stage.name}` : '')

export const status = definePanel({
  title: 'espalier',
  height: 3,
  span: 'full',
  priority: 0,
  Component({ state, width }) {
    const { start } = state
    return (
      <>
        <Text bold>{fit(`${signs[state.status]}  ${state.name}${stageOf(state)}`, width)}</Text>
        <Text>{fit(progressLine(state, width), width)}</Text>
        <Text dimColor>{fit(start ? `${start.base} · ${start.device} · ${start.runDir}` : ' ', width)}</Text>
      </>
    )
  },
})
