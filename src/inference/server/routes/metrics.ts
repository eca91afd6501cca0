// GET /metrics: the Prometheus text format. It names no prompts and no keys, and needs none.
import type { Route } from './route.js'

export const metrics: Route = (app, context) => {
  app.get('/metrics', async (_, reply) =>
    reply.header('content-type', context.metrics.contentType).send(await context.metrics.text()),
  )
}
