// The commands, in the order of --help. A new one is a file beside this and a line here.
import type { Command } from '../command.js'
import { annotate } from './annotate.js'
import { chat } from './chat.js'
import { doctor } from './doctor.js'
import { evaluate } from './eval.js'
import { generate } from './generate.js'
import { importCommand } from './import.js'
import { init } from './init.js'
import { inspect } from './inspect.js'
import { plan } from './plan.js'
import { run } from './run.js'
import { score } from './score.js'
import { serve } from './serve.js'

export const commands = {
  init,
  run,
  plan,
  import: importCommand,
  inspect,
  eval: evaluate,
  score,
  generate,
  chat,
  annotate,
  serve,
  doctor,
} as const satisfies Record<string, Command>
