// The routes of the server. A new one is a file beside this and a line here.
import { adapters } from './adapters.js'
import { chatCompletions } from './chat-completions.js'
import { completions } from './completions.js'
import { health } from './health.js'
import { metrics } from './metrics.js'
import { models } from './models.js'
import type { Route } from './route.js'

export const routes: readonly Route[] = [health, metrics, models, chatCompletions, completions, adapters]
