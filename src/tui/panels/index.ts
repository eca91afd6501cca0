// The panels, in the order of the screen. A new one is a file beside this and a line here.
import { curves } from './curves.js'
import { learning } from './learning.js'
import { log } from './log.js'
import { measures } from './measures.js'
import { memory } from './memory.js'
import type { Panel } from './panel.js'
import { samples } from './samples.js'
import { speed } from './speed.js'
import { status } from './status.js'

export const panels = { status, curves, measures, learning, speed, memory, samples, log } as const satisfies Record<
  string,
  Panel
>
