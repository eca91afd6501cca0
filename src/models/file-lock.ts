// A lock between processes: a directory that only one can create, with the owner's process id in it. A lock whose owner
// has died is taken over. For downloads and imports into the shared cache.
import { mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const POLL_MS = 200
/** A lock without a readable owner is being made; after this long its maker has died in between. */
const GRACE_MS = 5000

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

function isAbandoned(lock: string): boolean {
  try {
    const owner = JSON.parse(readFileSync(join(lock, 'owner.json'), 'utf8')) as { pid: number; host: string }
    return owner.host === hostname() && !isAlive(owner.pid)
  } catch {
    try {
      return Date.now() - statSync(lock).mtimeMs > GRACE_MS
    } catch {
      return false
    }
  }
}

function tryLock(lock: string): boolean {
  try {
    mkdirSync(lock)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw error
  }
  writeFileSync(join(lock, 'owner.json'), JSON.stringify({ pid: process.pid, host: hostname() }))
  return true
}

/** Takes an abandoned lock away; of several processes that try, one renames it. */
function removeAbandoned(lock: string): void {
  const aside = `${lock}.${process.pid}.stale`
  try {
    renameSync(lock, aside)
  } catch {
    return
  }
  rmSync(aside, { recursive: true, force: true })
}

export interface LockOptions {
  signal?: AbortSignal | undefined
  /** Called once when another process holds the lock. */
  onWait?: () => void
}

/** Runs `work` while holding the lock `path`.lock. */
export async function withLock<T>(path: string, work: () => Promise<T>, options: LockOptions = {}): Promise<T> {
  const lock = `${path}.lock`
  mkdirSync(dirname(lock), { recursive: true })
  let waited = false
  while (!tryLock(lock)) {
    options.signal?.throwIfAborted()
    if (isAbandoned(lock)) {
      removeAbandoned(lock)
      continue
    }
    if (!waited) options.onWait?.()
    waited = true
    await sleep(POLL_MS)
  }
  try {
    return await work()
  } finally {
    rmSync(lock, { recursive: true, force: true })
  }
}
