// Errors in OpenAI's shape, {error: {message, type, param, code}}: our own, Fastify's by their codes, and everything else as
// a 500 that says nothing of the inside.
import { RequestError } from '../sampling.js'

/** Types by status, as OpenAI's clients know them. */
const types: Record<number, string> = {
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  409: 'conflict_error',
  429: 'rate_limit_error',
  500: 'server_error',
  503: 'service_unavailable_error',
}

export interface ApiErrorDetails {
  readonly param?: string | null
  readonly code?: string | null
  readonly headers?: Readonly<Record<string, string>>
}

/** An answer other than success; the message goes to the client as it is. */
export class ApiError extends Error {
  readonly status: number
  readonly param: string | null
  readonly code: string | null
  readonly headers: Readonly<Record<string, string>>

  constructor(status: number, message: string, details: ApiErrorDetails = {}) {
    super(message)
    this.name = 'ApiError'
    this.status = status
    this.param = details.param ?? null
    this.code = details.code ?? null
    this.headers = details.headers ?? {}
  }
}

export const badRequest = (message: string, param: string | null = null, code: string | null = null): ApiError =>
  new ApiError(400, message, { param, code })

export const drainingError = (): ApiError =>
  new ApiError(503, 'the server is shutting down and takes no new requests; send this one to another', {
    code: 'shutting_down',
    headers: { 'retry-after': '5' },
  })

export function errorBody({ status, message, param, code }: ApiError) {
  return { error: { message, type: types[status] ?? 'invalid_request_error', param, code } }
}

/** What Fastify finds wrong before a route sees the request, by its error code. */
const fastifyErrors: Record<string, { status: number; code: string; message: (limitBytes: number) => string }> = {
  FST_ERR_CTP_BODY_TOO_LARGE: {
    status: 413,
    code: 'request_too_large',
    message: (limit) => `the body is larger than ${limit} bytes; shorten the prompt`,
  },
  FST_ERR_CTP_INVALID_MEDIA_TYPE: {
    status: 415,
    code: 'unsupported_media_type',
    message: () => 'send JSON with the header content-type: application/json',
  },
  FST_ERR_CTP_EMPTY_JSON_BODY: { status: 400, code: 'invalid_json', message: () => 'the body is empty; send JSON' },
  FST_ERR_CTP_INVALID_JSON_BODY: { status: 400, code: 'invalid_json', message: () => 'the body is not valid JSON' },
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: {
    status: 400,
    code: 'invalid_content_length',
    message: () => 'the body is not as long as content-length says',
  },
}

/** Any error as what the client gets. */
export function toApiError(error: unknown, requestId: string, bodyLimitBytes: number): ApiError {
  if (error instanceof ApiError) return error
  const {
    code = '',
    statusCode = 500,
    message = '',
  } = error as { code?: string; statusCode?: number; message?: string }
  if (error instanceof RequestError) return badRequest(error.message)
  const known = fastifyErrors[code]
  if (known) return new ApiError(known.status, known.message(bodyLimitBytes), { code: known.code })
  if (statusCode >= 400 && statusCode < 500) return new ApiError(statusCode, message)
  return new ApiError(500, `the server failed; its log says why under request ${requestId}`, { code: 'internal_error' })
}
