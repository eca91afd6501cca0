// Builds the addon and the kernel libraries into build/: node kernels/build.mjs [--sanitize address|undefined] [--debug]
// Needs a C++17 compiler and CMake; the headers of ONNX Runtime and Node-API come from npm, pinned by hash, and stay in a
// cache outside the repository. Does nothing when no source has changed. Plain JavaScript: it runs before anything is built.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { access, copyFile, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { availableParallelism, homedir } from 'node:os'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'

const kernelsDir = dirname(fileURLToPath(import.meta.url))
const root = dirname(kernelsDir)

/** Header packages: the folder inside the tarball that holds the headers, and the tarball's SHA-256. */
const headerPackages = {
  // API 29; a later library serves it. The only npm package with the C headers, 150 MB because it is a game engine's plugin.
  onnxruntime: {
    name: 'com.github.asus4.onnxruntime',
    version: '0.4.9',
    sha256: 'e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d',
    folder: 'package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers',
    megabytes: 150,
  },
  node: {
    name: 'node-api-headers',
    version: '1.9.0',
    sha256: '6cbfac49542194ae2c8f1dee5fa2dc00d66bec9cbf3b59e3a4e5f16d14eb0d19',
    folder: 'package/include',
    megabytes: 1,
  },
}

class BuildError extends Error {}

const exists = (path) =>
  access(path).then(
    () => true,
    () => false,
  )
const cacheDir = () => join(process.env.ESPALIER_CACHE || join(homedir(), '.cache', 'espalier'), 'headers')

function findTool(names, what, install) {
  for (const name of names.filter(Boolean)) {
    const [command, ...rest] = name.split(' ')
    const probe = spawnSync(command, [...rest, '--version'], { encoding: 'utf8' })
    if (probe.status === 0) return { command: name, version: probe.stdout.split('\n')[0] }
  }
  throw new BuildError(`${what} not found (looked for ${names.filter(Boolean).join(', ')}). Install it: ${install}`)
}

async function sha256(path) {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path)) hash.update(chunk)
  return hash.digest('hex')
}

/** Returns the folder with a package's headers, fetching it with `npm pack` the first time. */
async function headers({ name, version, sha256: expected, folder, megabytes }, log) {
  const target = join(cacheDir(), `${name}-${version}`)
  if (await exists(target)) return target
  await mkdir(cacheDir(), { recursive: true })
  const work = await mkdtemp(join(cacheDir(), 'fetch-'))
  try {
    const seeded = join(cacheDir(), `${name}-${version}.tgz`)
    let tarball = seeded
    if (!(await exists(seeded))) {
      log(`fetching the headers of ${name}@${version} (${megabytes} MB, once)`)
      const packed = spawnSync('npm', ['pack', '--silent', '--pack-destination', work, `${name}@${version}`], {
        cwd: work,
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'pipe'],
        shell: process.platform === 'win32',
      })
      if (packed.status !== 0)
        throw new BuildError(
          `cannot fetch ${name}@${version} from the npm registry: ${packed.stderr || packed.error?.message}`,
        )
      tarball = join(work, `${name}-${version}.tgz`)
    }
    const actual = await sha256(tarball)
    if (actual !== expected)
      throw new BuildError(`${tarball} has SHA-256 ${actual}, expected ${expected}; delete it and try again`)
    const strip = String(folder.split('/').length)
    const out = join(work, 'headers')
    await mkdir(out)
    const untar = spawnSync('tar', ['-xzf', tarball, '-C', out, '--strip-components', strip, folder], {
      encoding: 'utf8',
    })
    if (untar.status !== 0) throw new BuildError(`cannot unpack ${tarball}: ${untar.stderr || untar.error?.message}`)
    await rename(out, target).catch(async (error) => {
      if (!(await exists(target))) throw error // another build was faster
    })
    return target
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** A hash of everything the result depends on. */
async function fingerprint(facts) {
  const hash = createHash('sha256').update(JSON.stringify(facts))
  const probe = join(root, 'test/runtime/probe.cc')
  const files = (await exists(probe)) ? [probe] : []
  for (const entry of await readdir(kernelsDir, { recursive: true, withFileTypes: true }))
    if (entry.isFile() && /\.(cc|h|txt|mjs)$/.test(entry.name))
      files.push(join(entry.parentPath ?? entry.path, entry.name))
  for (const file of files.sort()) hash.update(relative(root, file)).update(await readFile(file))
  return hash.digest('hex')
}

const isAlive = (pid) => {
  try {
    return process.kill(pid, 0)
  } catch (error) {
    return error.code === 'EPERM'
  }
}

/** Runs `work` while no other build uses the folder. */
async function locked(folder, log, work) {
  await mkdir(folder, { recursive: true })
  const lock = join(folder, 'lock')
  for (let waited = 0; ; waited++) {
    const isOurs = await writeFile(lock, String(process.pid), { flag: 'wx' }).then(
      () => true,
      () => false,
    )
    if (isOurs) break
    const owner = Number(await readFile(lock, 'utf8').catch(() => ''))
    if (owner && !isAlive(owner)) await rm(lock, { force: true })
    else if (waited === 0) log('waiting for another build')
    await new Promise((resume) => setTimeout(resume, 200))
  }
  try {
    return await work()
  } finally {
    await rm(lock, { force: true })
  }
}

/**
 * @param {{ sanitize?: 'address' | 'undefined', debug?: boolean, log?: (line: string) => void }} [options]
 * @returns the folder that holds espalier.node and the kernel libraries
 */
export async function build({ sanitize, debug = false, log = (line) => console.error(`[build] ${line}`) } = {}) {
  if (process.platform === 'win32')
    throw new BuildError('the addon is not built on Windows; the stock path runs without it')
  const output = join(root, 'build', sanitize ? `sanitize-${sanitize}` : debug ? 'debug' : '')
  const compiler = findTool(
    [process.env.CXX, 'c++', 'g++', 'clang++'],
    'a C++17 compiler',
    'apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), xcode-select --install (macOS)',
  )
  const cmake = findTool(
    ['cmake'],
    'CMake 3.18 or later',
    'apt-get install cmake (Debian, Ubuntu), dnf install cmake (Fedora), brew install cmake (macOS), or pip install cmake',
  )
  const napi = dirname(fileURLToPath(await import.meta.resolve('node-addon-api')))
  return locked(output, log, () => buildLocked({ sanitize, debug, log, output, compiler, cmake, napi }))
}

async function buildLocked({ sanitize, debug, log, output, compiler, cmake, napi }) {
  const stampPath = join(output, 'stamp')
  const stamp = await fingerprint({ compiler, cmake, sanitize, debug, headerPackages, arch: process.arch, root })
  const before = await readFile(stampPath, 'utf8').catch(() => '')
  if (before === stamp && (await exists(join(output, 'espalier.node')))) {
    log('the native code is up to date')
    return output
  }
  const ort = await headers(headerPackages.onnxruntime, log)
  const node = await headers(headerPackages.node, log)
  const work = join(output, 'cmake')
  await mkdir(work, { recursive: true })
  const jobs = String(process.env.ESPALIER_BUILD_JOBS || availableParallelism())
  log(`compiling the native code with ${compiler.version} on ${jobs} CPUs`)
  const run = (args) => {
    const { status, error } = spawnSync('cmake', args, { stdio: ['ignore', 2, 2] })
    if (status !== 0) throw new BuildError(`cmake ${args[0]} failed${error ? `: ${error.message}` : '; see above'}`)
  }
  run([
    '-S',
    kernelsDir,
    '-B',
    work,
    `-DCMAKE_CXX_COMPILER=${compiler.command}`,
    '--log-level=WARNING',
    `-DESPALIER_OUTPUT=${join(work, 'out')}`,
    `-DESPALIER_ORT_INCLUDE=${ort}`,
    `-DESPALIER_NODE_INCLUDE=${node}`,
    `-DESPALIER_NAPI_INCLUDE=${napi}`,
    `-DESPALIER_SANITIZER=${sanitize ?? ''}`,
    `-DESPALIER_DEBUG=${debug ? 1 : 0}`,
  ])
  run(['--build', work, '--parallel', jobs, ...(process.env.ESPALIER_BUILD_VERBOSE ? ['--verbose'] : [])])
  // Replaced whole: a process that has the old library mapped keeps it.
  for (const name of await readdir(join(work, 'out'))) {
    await copyFile(join(work, 'out', name), join(output, `${name}.new`))
    await rename(join(output, `${name}.new`), join(output, name))
  }
  await writeFile(stampPath, stamp)
  log(`built ${relative(root, join(output, 'espalier.node'))} and its kernel libraries`)
  return output
}

if (process.argv[1] && import.meta.url === pathToFileURL(resolve(process.argv[1])).href) {
  const { values } = parseArgs({
    options: { sanitize: { type: 'string' }, debug: { type: 'boolean' }, help: { type: 'boolean' } },
  })
  if (values.help || ![undefined, 'address', 'undefined'].includes(values.sanitize)) {
    console.error(`usage: node kernels/${basename(import.meta.url)} [--sanitize address|undefined] [--debug]`)
    process.exit(values.help ? 0 : 2)
  }
  try {
    await build(values)
  } catch (error) {
    if (!(error instanceof BuildError)) throw error
    console.error(`[build] ${error.message}`)
    process.exit(1)
  }
}
