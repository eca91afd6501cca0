// Runs the command line as users do: the built program in a process of its own.
import { spawn, spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../..', import.meta.url))
const bin = join(root, 'bin', 'espalier.mjs')

/** Builds what has changed. */
export function build(): void {
  const { status, stderr } = spawnSync(process.execPath, [join(root, 'scripts', 'setup.mjs')], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`setup failed:\n${stderr}`)
}

export interface Finished {
  code: number | null
  stdout: string
  stderr: string
}

export interface CallOptions {
  cwd?: string
  env?: Record<string, string>
  input?: string
  /** SIGINT as soon as the output holds the text, as often as said. */
  interrupt?: { at: string; times?: number }
}

export function espalier(args: string[], options: CallOptions = {}): Promise<Finished> {
  const child = spawn(process.execPath, [bin, ...args], {
    cwd: options.cwd ?? root,
    env: { ...process.env, NO_COLOR: '1', ...options.env },
  })
  const result: Finished = { code: null, stdout: '', stderr: '' }
  let isInterrupted = false
  const watch = () => {
    if (!options.interrupt || isInterrupted || !(result.stdout + result.stderr).includes(options.interrupt.at)) return
    isInterrupted = true
    child.kill('SIGINT')
    if ((options.interrupt.times ?? 1) > 1) setTimeout(() => child.kill('SIGINT'), 50)
  }
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].on('data', (chunk) => {
      result[name] += chunk
      watch()
    })
  }
  child.stdin.on('error', () => {}) // it may end before it reads
  child.stdin.end(options.input ?? '')
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    // As a shell says it: a signal that comes when Node has already let go of its handlers kills, which is 130 too.
    child.once('close', (code, signal) => resolve({ ...result, code: signal === 'SIGINT' ? 130 : code }))
  })
}

/** The JSON that a call prints; nothing else may stand on standard output. */
export async function espalierJson<T>(args: string[], options: CallOptions = {}): Promise<T> {
  const { code, stdout, stderr } = await espalier(args, options)
  if (code !== 0) throw new Error(`espalier ${args.join(' ')} ended with ${code}:\n${stderr}${stdout}`)
  return JSON.parse(stdout) as T
}
