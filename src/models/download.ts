// Downloads: a package of the Python index through pip, and files of the Hugging Face hub over HTTPS with resumption.
// Both write aside and check hashes before a file gets its name.
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  closeSync,
  createReadStream,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'

export interface TransferOptions {
  onBytes?: ((done: number, total: number | null, file: string) => void) | undefined
  signal?: AbortSignal | undefined
}

/** Waiting longer than this for a connection or for the next bytes counts as a failure. */
const STALL_MS = 20_000

const folderBytes = (dir: string): number => {
  let sum = 0
  for (const entry of readdirSync(dir, { withFileTypes: true, recursive: true })) {
    if (!entry.isFile()) continue
    try {
      sum += statSync(join(entry.parentPath, entry.name)).size
    } catch {
      // pip moved it in the meantime.
    }
  }
  return sum
}

function runPip(python: string, args: string[], dir: string, options: TransferOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(python, ['-m', 'pip', ...args], {
      env: { ...process.env, TMPDIR: dir },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let errors = ''
    child.stderr.on('data', (data: Buffer) => {
      errors = (errors + data.toString('utf8')).slice(-2000)
    })
    const onAbort = () => child.kill()
    options.signal?.addEventListener('abort', onAbort, { once: true })
    const poll = setInterval(() => options.onBytes?.(folderBytes(dir), null, 'pip'), 500)
    const end = (error: Error | null) => {
      clearInterval(poll)
      options.signal?.removeEventListener('abort', onAbort)
      if (options.signal?.aborted) reject(options.signal.reason as Error)
      else if (error) reject(error)
      else resolve()
    }
    child.on('error', end)
    child.on('close', (code) => {
      if (code === 0) return end(null)
      const lines = errors.split('\n').filter((line) => line.trim() !== '')
      const last = lines.filter((line) => line.startsWith('ERROR')).at(-1) ?? lines.at(-1) ?? ''
      end(new Error(`pip: ${last || `exit code ${code}`}`))
    })
  })
}

/** Downloads one wheel with pip into `dir` and returns its path. Throws where no Python with pip is found or pip fails. */
export async function pipDownload(requirement: string, dir: string, options: TransferOptions = {}): Promise<string> {
  mkdirSync(dir, { recursive: true })
  const quick = [
    '--disable-pip-version-check',
    '--no-input',
    '--no-color',
    '--quiet',
    '--retries',
    '1',
    '--timeout',
    '15',
  ]
  const args = ['download', ...quick, '--no-deps', '--only-binary', ':all:', '--dest', dir, requirement]
  let failure: Error | undefined
  for (const python of ['python3', 'python']) {
    try {
      await runPip(python, args, dir, options)
      const wheel = readdirSync(dir).find((name) => name.endsWith('.whl'))
      if (!wheel) throw new Error(`pip: no wheel was written for ${requirement}`)
      return join(dir, wheel)
    } catch (error) {
      options.signal?.throwIfAborted()
      const isMissing = (error as NodeJS.ErrnoException).code === 'ENOENT'
      failure = isMissing ? (failure ?? new Error(`${python} was not found`)) : (error as Error)
      if (!isMissing) break
    }
  }
  throw failure ?? new Error('python3 was not found')
}

/** A signal that fires when `touch` was not called for STALL_MS, or when `outer` fires. */
function stallSignal(outer: AbortSignal | undefined) {
  const controller = new AbortController()
  const onOuter = () => controller.abort(outer!.reason)
  if (outer?.aborted) onOuter()
  outer?.addEventListener('abort', onOuter, { once: true })
  let timer: NodeJS.Timeout | undefined
  const touch = () => {
    clearTimeout(timer)
    timer = setTimeout(() => controller.abort(new Error(`no answer for ${STALL_MS / 1000} s`)), STALL_MS)
  }
  touch()
  const stop = () => {
    clearTimeout(timer)
    outer?.removeEventListener('abort', onOuter)
  }
  return { signal: controller.signal, touch, stop }
}

const causeOf = (error: unknown): string => {
  const cause = (error as { cause?: { code?: string; message?: string } }).cause
  return cause?.code ?? cause?.message ?? (error as Error).message
}

async function request(url: string, headers: Record<string, string>, signal: AbortSignal): Promise<Response> {
  try {
    return await fetch(url, { headers, signal })
  } catch (error) {
    throw new Error(`${url}: ${causeOf(error)}`)
  }
}

const tokenHeader = (): Record<string, string> => {
  const token = process.env.HF_TOKEN
  return token ? { authorization: `Bearer ${token}` } : {}
}

/** A file that the hub lists. */
export interface HubFile {
  name: string
  size: number | null
  sha256: string | null
}

const hubUrl = () => (process.env.HF_ENDPOINT ?? 'https://huggingface.co').replace(/\/+$/, '')

/** What a repository holds. */
export type HubKind = 'models' | 'datasets'

/** Revision and files of a repository of the hub, those of its folders too where it is one of data. Throws with the reason. */
export async function listHubFiles(
  repo: string,
  revision = 'main',
  signal?: AbortSignal,
  kind: HubKind = 'models',
): Promise<{ revision: string; files: HubFile[] }> {
  const url = `${hubUrl()}/api/${kind}/${repo}/revision/${encodeURIComponent(revision)}?blobs=true`
  const stall = stallSignal(signal)
  try {
    const response = await request(url, tokenHeader(), stall.signal)
    if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`)
    const body = (await response.json()) as {
      sha?: unknown
      siblings?: { rfilename?: unknown; size?: unknown; lfs?: { sha256?: unknown } }[]
    }
    if (typeof body.sha !== 'string' || !/^[0-9a-f]{40}$/.test(body.sha) || !Array.isArray(body.siblings)) {
      throw new Error(`${url}: not the answer of a hub`)
    }
    const files = body.siblings.flatMap(({ rfilename, size, lfs }) => {
      // No name may lead out of the cache
      const isSafe = kind === 'models' ? isFileName : isFilePath
      if (typeof rfilename !== 'string' || !isSafe(rfilename)) return []
      const sha256 = typeof lfs?.sha256 === 'string' ? lfs.sha256 : null
      return [{ name: rfilename, size: typeof size === 'number' ? size : null, sha256 }]
    })
    return { revision: body.sha, files }
  } finally {
    stall.stop()
  }
}

const isFileName = (name: string) => /^[A-Za-z0-9_][A-Za-z0-9._-]*$/.test(name)
const isFilePath = (path: string) => path.split('/').every(isFileName)

async function hashOf(path: string) {
  const hash = createHash('sha256')
  for await (const piece of createReadStream(path)) hash.update(piece as Buffer)
  return hash
}

/** Downloads `url` to `path`, continuing `<path>.partial` where the server allows it, and checks size and hash. */
export async function downloadFile(
  url: string,
  path: string,
  expected: { size: number | null; sha256: string | null },
  options: TransferOptions & { headers?: Record<string, string> } = {},
): Promise<void> {
  const partial = `${path}.partial`
  let done = existsSync(partial) ? statSync(partial).size : 0
  if (expected.size !== null && done > expected.size) {
    rmSync(partial)
    done = 0
  }
  let hash = done > 0 ? await hashOf(partial) : createHash('sha256')
  if (expected.size === null || done < expected.size) {
    const stall = stallSignal(options.signal)
    try {
      const range: Record<string, string> = done > 0 ? { range: `bytes=${done}-` } : {}
      const response = await request(url, { ...options.headers, ...range }, stall.signal)
      const isPart = response.status === 206 && response.headers.get('content-range')?.startsWith(`bytes ${done}-`)
      if (response.status !== 416 || done === 0) {
        if (!response.ok || !response.body) throw new Error(`${url}: ${response.status} ${response.statusText}`)
        if (!isPart && done > 0) {
          done = 0
          hash = createHash('sha256')
        }
        const fd = openSync(partial, isPart ? 'a' : 'w')
        try {
          for await (const piece of response.body as unknown as AsyncIterable<Uint8Array>) {
            stall.touch()
            for (let at = 0; at < piece.byteLength; ) at += writeSync(fd, piece, at)
            hash.update(piece)
            done += piece.byteLength
            options.onBytes?.(done, expected.size, path)
            if (expected.size !== null && done > expected.size)
              throw new Error(`${url}: more than ${expected.size} bytes`)
          }
          fsyncSync(fd)
        } finally {
          closeSync(fd)
        }
      }
    } catch (error) {
      options.signal?.throwIfAborted()
      throw stall.signal.aborted ? new Error(`${url}: ${(stall.signal.reason as Error).message}`) : error
    } finally {
      stall.stop()
    }
  }
  if (expected.size !== null && done !== expected.size) {
    throw new Error(`${url}: ${done} of ${expected.size} bytes arrived; run again to continue`)
  }
  const digest = hash.digest('hex')
  if (expected.sha256 !== null && digest !== expected.sha256) {
    rmSync(partial, { force: true })
    throw new Error(`${url}: SHA-256 is ${digest}, expected ${expected.sha256}`)
  }
  renameSync(partial, path)
}

/** Files of a repository that an import needs. */
const isNeeded = (name: string) =>
  /^(config|tokenizer|tokenizer_config|generation_config|model\.safetensors\.index)\.json$/.test(name) ||
  name === 'chat_template.jinja' ||
  /^model(-\d+-of-\d+)?\.safetensors$/.test(name)

/** Downloads what an import needs of a hub repository into `dir`; returns the revision. Finished files are kept. */
export async function downloadHubFolder(
  repo: string,
  dir: string,
  options: TransferOptions & { revision?: string } = {},
): Promise<string> {
  const { revision, files } = await listHubFiles(repo, options.revision, options.signal)
  const needed = files.filter(({ name }) => isNeeded(name))
  if (!needed.some(({ name }) => name.endsWith('.safetensors'))) {
    throw new Error(`${repo}: there is no safetensors checkpoint`)
  }
  mkdirSync(dir, { recursive: true })
  // Small files first: a repository that cannot be imported is known before its weights arrive.
  const order = [...needed].sort((a, b) => (a.size ?? 0) - (b.size ?? 0))
  for (const { name, size, sha256 } of order) {
    const path = join(dir, name)
    if (existsSync(path) && (size === null || statSync(path).size === size)) continue
    const url = `${hubUrl()}/${repo}/resolve/${revision}/${name}`
    await downloadFile(url, path, { size, sha256 }, { ...options, headers: tokenHeader() })
  }
  return revision
}

/** Downloads one file of a data repository to `path`; returns the revision. */
export async function downloadHubDataset(
  repo: string,
  file: string,
  path: string,
  options: TransferOptions & { revision?: string | undefined } = {},
): Promise<string> {
  const { revision, files } = await listHubFiles(repo, options.revision, options.signal, 'datasets')
  const found = files.find(({ name }) => name === file)
  if (!found) throw new Error(`${repo}: there is no ${file}; there are ${files.map(({ name }) => name).join(', ')}`)
  const url = `${hubUrl()}/datasets/${repo}/resolve/${revision}/${file}`
  await downloadFile(url, path, found, { ...options, headers: tokenHeader() })
  return revision
}
