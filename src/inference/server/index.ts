// An OpenAI-compatible server over one model: `espalier serve`, or a program's own.
import { realpathSync, statSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { createApp, type LogLevel } from './app.js'
import type { ServedModel, ServerContext } from './context.js'
import { drainingError } from './errors.js'
import { createKeyCheck } from './keys.js'
import { Admission, defaultLimits, type ServerLimits } from './limits.js'
import { createMetrics } from './metrics.js'

export { type LogLevel, logLevels } from './app.js'
export type { ServedModel } from './context.js'
export { defaultLimits, type ServerLimits } from './limits.js'

export interface ServeOptions {
  readonly model: ServedModel
  /** The name of the base in requests. Default: the model's. */
  readonly name?: string | undefined
  /** Default 127.0.0.1. */
  readonly host?: string | undefined
  /** 0 (default): any that is free. */
  readonly port?: number | undefined
  /** None: everyone who can connect may ask. */
  readonly apiKeys?: readonly string[] | undefined
  /** A folder whose adapters may be loaded and unloaded over HTTP. */
  readonly adapterFolder?: string | undefined
  readonly limits?: Partial<ServerLimits> | undefined
  /** Default silent. */
  readonly logLevel?: LogLevel | undefined
  readonly logStream?: { write(line: string): void } | undefined
}

export interface RunningServer {
  readonly url: string
  readonly host: string
  readonly port: number
  /** Requests that are being answered. */
  readonly active: number
  /** Takes no new requests, lets the running ones end until the deadline, ends the others, and closes. */
  drain(): Promise<void>
}

/** Time that the last answers get on their way. */
const flushMs = 2000

/** Settled when `done` says so, looked at often enough for people. */
async function waitUntil(done: () => boolean, deadline: number): Promise<void> {
  const lookMs = 20
  while (!done() && performance.now() < deadline) await new Promise((resolve) => setTimeout(resolve, lookMs))
}

const listenErrors: Record<string, string> = {
  EADDRINUSE: 'the port is in use; choose another, or 0 for any that is free',
  EACCES: 'this port needs more rights; choose one from 1024 on',
  EADDRNOTAVAIL: 'this machine does not have the address',
  ENOTFOUND: 'the name of the host is not known',
}

function folderOf(path: string): string {
  try {
    const real = realpathSync(path)
    if (statSync(real).isDirectory()) return real
  } catch {}
  throw new Error(`${path}: no such folder to load adapters from`)
}

/** Starts a server. The model stays the caller's to close. */
export async function serve(options: ServeOptions): Promise<RunningServer> {
  const { model, host = '127.0.0.1', port = 0 } = options
  const limits: ServerLimits = { ...defaultLimits, ...options.limits }
  const admission = new Admission(limits)
  const context: ServerContext = {
    model,
    name: options.name ?? model.name,
    limits: { ...limits, maxChoices: Math.min(limits.maxChoices, limits.maxConcurrent) },
    admission,
    metrics: createMetrics(admission, () => model.engine.statistics()),
    checkKey: createKeyCheck(options.apiKeys ?? []),
    adapterFolder: options.adapterFolder === undefined ? null : folderOf(options.adapterFolder),
    created: Math.floor(Date.now() / 1000),
    isDraining: false,
    unanswered: 0,
    active: new Set(),
  }
  const app = createApp(context, { level: options.logLevel ?? 'silent', stream: options.logStream ?? process.stderr })
  try {
    await app.listen({ host, port })
  } catch (error) {
    const why = listenErrors[(error as NodeJS.ErrnoException).code ?? '']
    throw why ? new Error(`cannot listen on ${host}:${port}: ${why}`, { cause: error }) : error
  }
  const address = app.server.address() as AddressInfo
  const shown = address.family === 'IPv6' ? `[${address.address}]` : address.address
  let draining: Promise<void> | undefined

  const drain = async () => {
    context.isDraining = true
    await waitUntil(() => context.active.size === 0, performance.now() + limits.drainSeconds * 1000)
    for (const controller of context.active) controller.abort(drainingError())
    // Aborted requests still word their error.
    await waitUntil(() => context.active.size === 0, performance.now() + limits.stallSeconds * 1000)
    const closing = app.close()
    await waitUntil(() => context.unanswered === 0, performance.now() + flushMs)
    app.server.closeAllConnections() // idle ones, and those that do not send their request or take their answer
    await closing
  }
  return {
    url: `http://${shown}:${address.port}`,
    host: address.address,
    port: address.port,
    get active() {
      return context.active.size
    },
    drain() {
      draining ??= drain()
      return draining
    },
  }
}
