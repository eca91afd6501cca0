// Finding and downloading bases: a hub that breaks off, hashes, the lock, wheels, and what is said when nothing is reached.
import { createHash } from 'node:crypto'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { crc32, deflateRawSync } from 'node:zlib'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { openBase } from '../../src/models/base-directory.js'
import { downloadFile } from '../../src/models/download.js'
import {
  BaseUnavailableError,
  type FetchProgress,
  knownBases,
  prepareBase,
  resolveBase,
} from '../../src/models/fetch.js'
import { withLock } from '../../src/models/file-lock.js'
import { FormatError } from '../../src/models/format-error.js'
import { openZipMember } from '../../src/models/zip.js'
import { tinyFolders } from './folders.js'

const scratch = mkdtempSync(join(tmpdir(), 'espalier-fetch-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))
afterEach(() => vi.unstubAllEnvs())
let count = 0
const fresh = () => join(scratch, `${count++}`)
const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')

const folder = tinyFolders().find(({ isSupported }) => isSupported)!
const REVISION = 'a'.repeat(40)

/** A hub with one repository; `cutAfter` breaks every transfer off after so many bytes. */
const hub = { cutAfter: Infinity, requests: [] as string[], ignoresRange: false, body: null as Buffer | null }
let server: Server
let endpoint: string

beforeAll(async () => {
  server = createServer((request, response) => {
    hub.requests.push(`${request.url} ${request.headers.range ?? ''}`)
    if (request.url?.startsWith(`/api/models/org/tiny/revision/`)) {
      const siblings = readdirSync(folder.dir).map((rfilename) => {
        const bytes = readFileSync(join(folder.dir, rfilename))
        return { rfilename, size: bytes.length, ...(bytes.length > 10_000 ? { lfs: { sha256: sha256(bytes) } } : {}) }
      })
      siblings.push({ rfilename: '../../escape.safetensors', size: 1 })
      return response.end(JSON.stringify({ sha: REVISION, siblings }))
    }
    const name = new RegExp(`^/org/tiny/resolve/${REVISION}/([\\w.-]+)$`).exec(request.url ?? '')?.[1]
    if (!name) return response.writeHead(404).end()
    const bytes = hub.body ?? readFileSync(join(folder.dir, name))
    const from = hub.ignoresRange ? 0 : Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
    const headers: Record<string, string | number> = { 'content-length': bytes.length - from }
    if (from > 0) headers['content-range'] = `bytes ${from}-${bytes.length - 1}/${bytes.length}`
    response.writeHead(from > 0 ? 206 : 200, headers)
    const to = Math.min(bytes.length, from + hub.cutAfter)
    response.write(bytes.subarray(from, to), () => (to < bytes.length ? response.destroy() : response.end()))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
})
afterAll(() => server.close())

describe('a hub repository', () => {
  it('is downloaded, continued where it broke off, imported once, and then found without a network', async () => {
    vi.stubEnv('HF_ENDPOINT', endpoint)
    const cacheDir = fresh()
    Object.assign(hub, { cutAfter: 200_000, requests: [] })
    let attempts = 0
    let result: Awaited<ReturnType<typeof prepareBase>> | undefined
    while (!result && attempts++ < 20) {
      result = await prepareBase('hf:org/tiny', { cacheDir, format: 'int4' }).catch((error: Error) => {
        expect(error).toBeInstanceOf(BaseUnavailableError)
        return undefined
      })
    }
    Object.assign(hub, { cutAfter: Infinity })
    expect(result).toMatchObject({ kind: 'folder', name: 'org/tiny', origin: 'hugging face hub', isReference: false })
    expect(attempts).toBeGreaterThan(1)
    expect(hub.requests.some((line) => line.includes('bytes='))).toBe(true)
    expect(openBase(result!.dir).source.name).toBe('org/tiny')
    expect(readdirSync(join(cacheDir, 'hub')).sort()).toEqual(['org--tiny'])
    const offline = await prepareBase('hf:org/tiny', { cacheDir, format: 'int4', offline: true })
    expect(offline.dir).toBe(result!.dir)
  })

  it('that does not exist is reported', async () => {
    vi.stubEnv('HF_ENDPOINT', endpoint)
    await expect(resolveBase('hf:org/none', { cacheDir: fresh() })).rejects.toThrow(/404/)
    await expect(resolveBase('hf:org/..', { cacheDir: fresh() })).rejects.toThrow(BaseUnavailableError)
  })
})

describe('a download', () => {
  const url = () => `${endpoint}/org/tiny/resolve/${REVISION}/config.json`
  const expected = () => {
    const bytes = readFileSync(join(folder.dir, 'config.json'))
    return { bytes, size: bytes.length, sha256: sha256(bytes) }
  }

  it('starts again where the server cannot continue', async () => {
    const path = fresh()
    const { bytes, ...rest } = expected()
    writeFileSync(`${path}.partial`, 'wrong beginning')
    hub.ignoresRange = true
    await downloadFile(url(), path, rest)
    hub.ignoresRange = false
    expect(readFileSync(path).equals(bytes)).toBe(true)
  })

  it('of wrong content is removed and named', async () => {
    const path = fresh()
    const { size, sha256: hash } = expected()
    writeFileSync(`${path}.partial`, 'wrong beginning')
    await expect(downloadFile(url(), path, { size, sha256: hash })).rejects.toThrow(/SHA-256 is/)
    expect(existsSync(path) || existsSync(`${path}.partial`)).toBe(false)
    await expect(downloadFile(url(), path, { size: size - 1, sha256: null })).rejects.toThrow(/more than|bytes/)
  })

  it('stops when told to', async () => {
    const signal = AbortSignal.abort(new Error('stop'))
    await expect(downloadFile(url(), fresh(), { size: null, sha256: null }, { signal })).rejects.toThrow('stop')
  })
})

describe('a base', () => {
  it('by path is a base directory, a folder or a file', async () => {
    const cacheDir = fresh()
    const prepared = await prepareBase(folder.dir, { cacheDir })
    expect(prepared).toMatchObject({ kind: 'folder', origin: 'given' })
    expect(await resolveBase(prepared.dir)).toMatchObject({ kind: 'base', path: prepared.dir })
    const again: FetchProgress[] = []
    await prepareBase(folder.dir, { cacheDir, onProgress: (progress) => again.push(progress) })
    expect(again).toEqual([])
    const empty = fresh()
    mkdirSync(empty)
    await expect(resolveBase(empty)).rejects.toThrow(/neither espalier\.json/)
  })

  it('of a changed source is imported anew', async () => {
    const cacheDir = fresh()
    const copy = fresh()
    cpSync(folder.dir, copy, { recursive: true })
    const first = await prepareBase(copy, { cacheDir })
    utimesSync(join(copy, 'config.json'), new Date(0), new Date(0))
    expect((await prepareBase(copy, { cacheDir })).dir).not.toBe(first.dir)
  })

  it('that is damaged in the cache is imported again', async () => {
    const cacheDir = fresh()
    const { dir } = await prepareBase(folder.dir, { cacheDir })
    writeFileSync(join(dir, 'weights.safetensors'), 'x')
    await prepareBase(folder.dir, { cacheDir })
    openBase(dir)
  })

  it('that nobody knows is an error with the names there are', async () => {
    await expect(resolveBase('smollm3')).rejects.toThrow(/smollm2-135m-instruct/)
  })

  it('that no source gives is an error that says what was tried and what to do', async () => {
    const nobody = createServer()
    await new Promise<void>((resolve) => nobody.listen(0, '127.0.0.1', resolve))
    const closed = `http://127.0.0.1:${(nobody.address() as AddressInfo).port}`
    await new Promise((resolve) => nobody.close(resolve))
    vi.stubEnv('HF_ENDPOINT', closed)
    vi.stubEnv('PIP_INDEX_URL', `${closed}/simple`)
    vi.stubEnv('PIP_EXTRA_INDEX_URL', '')
    vi.stubEnv('PIP_CONFIG_FILE', '/dev/null')
    const name = Object.keys(knownBases)[0]!
    const error = await resolveBase(name, { cacheDir: fresh() }).catch((error: Error) => error)
    expect(error).toBeInstanceOf(BaseUnavailableError)
    expect((error as Error).message).toMatch(
      /Python package index: pip: ERROR.*\n.*Hugging Face hub: .*ECONNREFUSED.*\n.*SHA-256/s,
    )
  }, 60_000)
})

describe('the lock', () => {
  it('lets one in at a time and is taken over from the dead', async () => {
    const path = fresh()
    let inside = 0
    let waits = 0
    const work = async () => {
      expect(++inside).toBe(1)
      await sleep(20)
      inside--
    }
    await Promise.all([1, 2, 3].map(() => withLock(path, work, { onWait: () => waits++ })))
    expect(waits).toBe(2)
    mkdirSync(`${path}.lock`)
    const { host } = { host: (await import('node:os')).hostname() }
    // A process id that no process has.
    writeFileSync(join(`${path}.lock`, 'owner.json'), JSON.stringify({ pid: 2 ** 30, host }))
    await withLock(path, work)
    expect(existsSync(`${path}.lock`)).toBe(false)
    await expect(withLock(path, () => Promise.reject(new Error('failed')))).rejects.toThrow('failed')
    expect(existsSync(`${path}.lock`)).toBe(false)
  })
})

/** A zip archive with one member, written by hand. */
function zipOf(name: string, content: Uint8Array, method: 0 | 8): Buffer {
  const data = method === 8 ? deflateRawSync(content) : Buffer.from(content)
  const fields = (signature: number, central: boolean) => {
    const header = Buffer.alloc(central ? 46 : 30)
    const at = central ? 2 : 0
    header.writeUInt32LE(signature, 0)
    header.writeUInt16LE(method, 8 + at)
    header.writeUInt32LE(crc32(content), 14 + at)
    header.writeUInt32LE(data.length, 18 + at)
    header.writeUInt32LE(content.length, 22 + at)
    header.writeUInt16LE(name.length, 26 + at)
    return Buffer.concat([header, Buffer.from(name)])
  }
  const local = Buffer.concat([fields(0x04034b50, false), data])
  const central = fields(0x02014b50, true)
  const end = Buffer.alloc(22)
  end.writeUInt32LE(0x06054b50, 0)
  end.writeUInt16LE(1, 8)
  end.writeUInt16LE(1, 10)
  end.writeUInt32LE(central.length, 12)
  end.writeUInt32LE(local.length, 16)
  return Buffer.concat([local, central, end])
}

describe('a zip archive', () => {
  const content = Buffer.from('the same line over and over\n'.repeat(100_000))

  it.each([0, 8] as const)('gives a member stored with method %i', async (method) => {
    const path = fresh()
    writeFileSync(path, zipOf('a/b.gguf', content, method))
    const { stream, byteLength, close } = openZipMember(path, 'a/b.gguf')
    const pieces: Buffer[] = []
    for await (const piece of stream) pieces.push(Buffer.from(piece as Uint8Array))
    close()
    expect(byteLength).toBe(content.length)
    expect(Buffer.concat(pieces).equals(content)).toBe(true)
  })

  it('is refused where it is none or lacks the member', () => {
    const path = fresh()
    writeFileSync(path, 'no archive')
    expect(() => openZipMember(path, 'a')).toThrow(FormatError)
    writeFileSync(path, zipOf('a', content, 8))
    expect(() => openZipMember(path, 'b')).toThrow(/member "b": not in the archive/)
    writeFileSync(path, zipOf('a', content, 8).subarray(100))
    expect(() => openZipMember(path, 'a')).toThrow(FormatError)
  })
})
