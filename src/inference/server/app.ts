// The Fastify application: limits, keys, errors in one shape, one log line and one count per request, and the routes.
import Fastify, { type FastifyInstance, type FastifyReply, LogController } from 'fastify'
import type { ServerContext } from './context.js'
import { ApiError, badRequest, errorBody, toApiError } from './errors.js'
import { routes } from './routes/index.js'

export const logLevels = ['silent', 'fatal', 'error', 'warn', 'info', 'debug', 'trace'] as const
export type LogLevel = (typeof logLevels)[number]

const leftStatus = 499 // nginx's: the client closed the connection
const connectionCheckMs = 1000
const tcpProbeMs = 30_000

/** What Node says of a connection that never became a request → status and message. */
const clientErrors: Record<string, readonly [status: number, reason: string, message: string]> = {
  ERR_HTTP_REQUEST_TIMEOUT: [408, 'Request Timeout', 'the request did not arrive in time'],
  HPE_HEADER_OVERFLOW: [431, 'Request Header Fields Too Large', 'the headers are too large'],
}
const malformed = [400, 'Bad Request', 'this is not HTTP/1.1 as it should be'] as const

export function createApp(
  context: ServerContext,
  log: { level: LogLevel; stream: { write(line: string): void } },
): FastifyInstance {
  const { limits, metrics } = context
  const app = Fastify({
    logger: log.level === 'silent' ? false : { level: log.level, stream: log.stream },
    logController: new LogController({ disableRequestLogging: true }), // one line of our own
    genReqId: () => crypto.randomUUID(),
    requestIdHeader: false,
    bodyLimit: limits.maxBodyBytes,
    requestTimeout: limits.requestSeconds * 1000,
    keepAliveTimeout: limits.keepAliveSeconds * 1000,
    forceCloseConnections: 'idle',
    http: {
      headersTimeout: limits.headersSeconds * 1000,
      connectionsCheckingInterval: connectionCheckMs,
      requireHostHeader: false, // Node's own answer has no body; ours is below
      keepAlive: true, // finds peers that are gone without a word
      keepAliveInitialDelay: tcpProbeMs,
    },
    frameworkErrors: (error, request, reply) => {
      const problem = toApiError(error, request.id, limits.maxBodyBytes)
      void (reply as FastifyReply).code(problem.status).send(errorBody(problem))
    },
    clientErrorHandler: (error, socket) => {
      const [status, reason, message] = clientErrors[error.code] ?? malformed
      if (error.code === 'ECONNRESET' || socket.destroyed) return
      metrics.request('none', 'none', status, 0)
      const body = JSON.stringify(errorBody(new ApiError(status, message, { code: 'bad_http' })))
      if (socket.writable && socket.bytesWritten === 0)
        socket.end(
          `HTTP/1.1 ${status} ${reason}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
        )
      socket.destroySoon()
    },
  })
  app.server.maxConnections = limits.maxConnections
  app.removeContentTypeParser('text/plain')

  app.addHook('onRequest', async (request, reply) => {
    const begin = performance.now()
    const route = request.routeOptions.url ?? 'none'
    context.unanswered++
    reply.raw.once('close', () => {
      context.unanswered--
      const status = reply.raw.writableFinished ? reply.raw.statusCode : leftStatus
      const seconds = (performance.now() - begin) / 1000
      metrics.request(route, request.method, status, seconds)
      request.log.info({ method: request.method, route, status, ms: Math.round(seconds * 1000) }, 'request')
    })
    reply.header('x-request-id', request.id)
    if (!request.headers.host && request.raw.httpVersion === '1.1') throw badRequest('the host header is missing')
    if (route.startsWith('/v1/') || request.url.startsWith('/v1/')) context.checkKey(request.headers.authorization)
  })
  // An answer that nobody takes off the line does not stay.
  app.addHook('onSend', async (_, reply) => {
    const timer = setTimeout(() => reply.raw.destroy(), limits.stallSeconds * 1000)
    reply.raw.once('close', () => clearTimeout(timer))
  })
  app.setErrorHandler((error, request, reply) => {
    const problem = toApiError(error, request.id, limits.maxBodyBytes)
    if (problem.status === 500) request.log.error({ err: error }, 'request failed')
    // What follows a body that was not read to its end is no request.
    if (problem.status === 413) reply.header('connection', 'close')
    return reply.code(problem.status).headers(problem.headers).send(errorBody(problem))
  })
  app.setNotFoundHandler((request) => {
    const url = request.url.split('?')[0]!
    const allow = (['GET', 'POST'] as const).find((method) => app.hasRoute({ method, url }))
    if (allow) throw new ApiError(405, `${url} takes ${allow}, not ${request.method}`, { headers: { allow } })
    throw new ApiError(404, `there is no ${request.method} ${url.slice(0, 200)} here`, { code: 'unknown_url' })
  })
  for (const route of routes) route(app, context)
  return app
}
