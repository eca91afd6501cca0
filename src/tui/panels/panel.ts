// What a panel is: a title, a height that never changes (so that the screen does not jump), and a component over the state.
import type { ReactNode } from 'react'
import type { RunState } from '../run-state.js'

export interface PanelProps {
  state: RunState
  /** Characters inside of the frame. */
  width: number
  /** Lines inside of the frame. */
  height: number
}

export interface Panel {
  readonly title: string
  /** Lines inside of the frame. */
  readonly height: number
  /** Two halves stand side by side where the screen is wide. */
  readonly span: 'full' | 'half'
  /** Shown first where the screen is low; 0 always. */
  readonly priority: number
  readonly Component: (props: PanelProps) => ReactNode
}

export const definePanel = (panel: Panel): Panel => panel
