// What a route file gives: a function that adds its routes to the server.
import type { FastifyInstance } from 'fastify'
import type { ServerContext } from '../context.js'

export type Route = (app: FastifyInstance, context: ServerContext) => void
