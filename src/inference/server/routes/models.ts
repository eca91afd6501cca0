// GET /v1/models and /v1/models/NAME: the base and its adapters, each by the name that requests give as `model`.
import { adapterOf, type ServerContext } from '../context.js'
import type { Route } from './route.js'

function describe({ name, created, model }: ServerContext, id: string) {
  const isBase = id === name
  return {
    id,
    object: 'model',
    created,
    owned_by: 'espalier',
    parent: isBase ? null : name,
    max_model_len: model.engine.maxSequenceTokens,
  }
}

export const models: Route = (app, context) => {
  app.get('/v1/models', async () => ({
    object: 'list',
    data: [context.name, ...context.model.engine.adapters()].map((id) => describe(context, id)),
  }))
  // Names may have slashes: org/name
  app.get<{ Params: { '*': string } }>('/v1/models/*', async ({ params }) => {
    const id = params['*']
    adapterOf(context, id)
    return describe(context, id)
  })
}
