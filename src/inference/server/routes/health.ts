// GET /health: 200 while requests are taken, 503 while the server drains. Open to everyone, as load balancers need it.
import { drainingError } from '../errors.js'
import type { Route } from './route.js'

export const health: Route = (app, context) => {
  app.get('/health', async () => {
    if (context.isDraining) throw drainingError()
    return { status: 'ok' }
  })
}
