// Runs a module in a child process and reports the peak resident memory of that child and everything below it.
import { spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'

export interface ChildReport<T> {
  result: T
  /** Sum over the processes of the tree of each one's own peak, MB of 2^20 bytes. */
  peakRssMb: number
  /** From before the spawn until `ready` was sent. */
  readySeconds: number | undefined
}

/** Kilobytes of a line of /proc/<pid>/status. */
function statusKb(pid: number, key: string): number | undefined {
  try {
    const match = new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))
    return match ? Number(match[1]) : undefined
  } catch {
    return undefined
  }
}

/** `root` and its descendants. */
function treeOf(root: number): number[] {
  const children = new Map<number, number[]>()
  for (const name of readdirSync('/proc')) {
    const pid = Number(name)
    if (!Number.isInteger(pid)) continue
    const parent = statusKb(pid, 'PPid')
    if (parent !== undefined) children.set(parent, [...(children.get(parent) ?? []), pid])
  }
  const tree = [root]
  for (const pid of tree) tree.push(...(children.get(pid) ?? []))
  return tree
}

const treeIntervalMs = 200

export interface ChildMessage<T> {
  ready?: true
  result?: T
  error?: string
}

/** Runs `file` with `--child <json of input>`; the child answers through `reportToParent`. */
export function runChild<T>(file: string, input: unknown, env: Record<string, string> = {}): Promise<ChildReport<T>> {
  const begin = performance.now()
  const child = spawn(process.execPath, [file, '--child', JSON.stringify(input)], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    env: { ...process.env, ...env },
  })
  const peaks = new Map<number, number>()
  const sample = () => {
    if (process.platform !== 'linux' || child.pid === undefined) return
    for (const pid of treeOf(child.pid)) {
      const kb = statusKb(pid, 'VmHWM')
      if (kb !== undefined) peaks.set(pid, Math.max(kb, peaks.get(pid) ?? 0))
    }
  }
  const timer = setInterval(sample, treeIntervalMs)
  return new Promise((resolve, reject) => {
    let message: (ChildMessage<T> & { ownPeakKb?: number }) | undefined
    let readySeconds: number | undefined
    child.on('message', (received: ChildMessage<T> & { ownPeakKb?: number }) => {
      if (received.ready) {
        readySeconds = (performance.now() - begin) / 1000
        return
      }
      message = received
      sample()
      child.disconnect()
    })
    child.once('error', reject)
    child.once('exit', (code, signal) => {
      clearInterval(timer)
      if (message?.error) return reject(new Error(message.error))
      if (!message)
        return reject(new Error(`the measured process ended with ${signal ?? `status ${code}`} and no result`))
      const own = message.ownPeakKb ?? 0
      const others = [...peaks].reduce((sum, [pid, kb]) => sum + (pid === child.pid ? 0 : kb), 0)
      const peakKb = Math.max(own, peaks.get(child.pid!) ?? 0) + others
      resolve({ result: message.result as T, peakRssMb: peakKb / 1024, readySeconds })
    })
  })
}

/** In the child: the input, or undefined in the parent. */
export function childInput<T>(): T | undefined {
  const at = process.argv.indexOf('--child')
  return at < 0 ? undefined : (JSON.parse(process.argv[at + 1]!) as T)
}

export const sendReady = () => process.send!({ ready: true })

/** In the child: runs `work`, sends what it gives, and waits for the parent to have looked. */
export async function reportToParent<T>(work: () => Promise<T>): Promise<void> {
  let message: ChildMessage<T> & { ownPeakKb?: number }
  try {
    message = { result: await work() }
  } catch (error) {
    message = { error: (error as Error).stack ?? String(error) }
  }
  message.ownPeakKb = process.resourceUsage().maxRSS
  const parent = new Promise((resolve) => process.once('disconnect', resolve))
  process.send!(message)
  await parent
  process.exit(message.error ? 1 : 0)
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}
