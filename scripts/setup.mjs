#!/usr/bin/env node
// From a fresh clone to something that runs: checks the tools, installs, compiles TypeScript and the kernels, each
// only when its inputs changed. No dependencies; everything it says goes to standard error, so that a command after
// it may print JSON. Options: --require-kernels (a failed native build is an error), --quiet (only what it does).
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { delimiter, dirname, join, relative, sep } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const requireKernels = process.argv.includes('--require-kernels')
const MIN_NODE = [20, 19]

const say = (text) => process.stderr.write(`[setup] ${text}\n`)
const fail = (text) => {
  process.stderr.write(`[setup] ${text.replaceAll('\n', '\n        ')}\n`)
  process.exit(1)
}

checkNode()
const unlock = takeLock()
process.on('exit', unlock)
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(130))
install()
compileTypeScript()
buildKernels()

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major > MIN_NODE[0] || (major === MIN_NODE[0] && minor >= MIN_NODE[1])) return
  fail(`Node.js ${process.version} is too old: Espalier needs ${MIN_NODE.join('.')} or later (https://nodejs.org).`)
}

/** One setup at a time in a checkout; a lock whose process is gone is taken over. */
function takeLock() {
  const path = join(root, '.setup-lock')
  let waited = false
  for (;;) {
    try {
      writeFileSync(path, String(process.pid), { flag: 'wx' })
      return () => rmSync(path, { force: true })
    } catch (error) {
      if (error.code !== 'EEXIST') return () => {} // a read-only checkout: nothing to build into either
    }
    let owner = 0
    try {
      owner = Number(readFileSync(path, 'utf8'))
      if (owner) process.kill(owner, 0)
    } catch (error) {
      if (error.code === 'ESRCH') rmSync(path, { force: true })
    }
    if (!waited && owner) say(`waiting for the setup of process ${owner}`)
    waited = true
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200)
  }
}

/** Runs a command with its output on standard error; returns whether it succeeded. */
function step(what, command, args, env = {}) {
  say(`${what} …`)
  const started = performance.now()
  const result = spawnSync(command, args, {
    cwd: root,
    stdio: ['ignore', 2, 2],
    env: { ...process.env, ...env },
    shell: process.platform === 'win32' && command === 'npm',
  })
  const seconds = ((performance.now() - started) / 1000).toFixed(1)
  const ok = result.status === 0
  say(
    `${what}: ${ok ? 'done' : `failed (${result.error?.message ?? `exit ${result.status ?? result.signal}`})`} in ${seconds} s`,
  )
  return ok
}

/** node_modules as package-lock.json says. Nothing is downloaded by install scripts of dependencies. */
function install() {
  const lockText = readFileSync(join(root, 'package-lock.json'), 'utf8')
  const stamp = join(root, 'node_modules', '.espalier-lock')
  const hash = sha256(lockText)
  if (read(stamp) === hash) return
  if (!installedMatches(lockText)) {
    const ok = step('installing packages (npm ci)', 'npm', ['ci', '--no-audit', '--no-fund', '--ignore-scripts'], {
      npm_config_onnxruntime_node_install: 'skip',
      ONNXRUNTIME_NODE_INSTALL: 'skip',
    })
    if (!ok) fail('npm ci failed. Check the network or registry settings above and run the same command again.')
  }
  writeFileSync(stamp, hash)
}

/** Whether what npm installed last is what the lock file names, so that an install by hand is not repeated. */
function installedMatches(lockText) {
  const installed = read(join(root, 'node_modules', '.package-lock.json'))
  if (!installed) return false
  const have = JSON.parse(installed).packages
  return Object.entries(JSON.parse(lockText).packages).every(
    ([path, entry]) => path === '' || entry.optional || entry.devOptional || have[path]?.version === entry.version,
  )
}

function compileTypeScript() {
  const sources = ['src', 'recipes', 'datasets', 'test'].flatMap((folder) =>
    walk(folder, /\.tsx?$/, /^test\/golden\/values/),
  )
  const inputs = [...sources, 'tsconfig.json', 'package.json', 'package-lock.json']
  const stamp = join(root, 'dist', '.sources')
  const state = fingerprint(inputs)
  const before = read(stamp)
  if (before === state) return
  removeOrphans(before, sources)
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc')
  const incremental = ['--incremental', '--tsBuildInfoFile', 'dist/.tsbuildinfo']
  if (!existsSync(join(root, 'dist', 'src', 'index.js'))) rmSync(join(root, 'dist'), { recursive: true, force: true })
  if (!step('compiling TypeScript', process.execPath, [tsc, '-p', '.', ...incremental]))
    fail('TypeScript has errors (above).')
  writeFileSync(stamp, state)
}

/** Outputs of sources that no longer exist, so that nothing runs from a stale file. */
function removeOrphans(before, sources) {
  const present = new Set(sources)
  for (const line of (before ?? '').split('\n')) {
    const source = line.split('\t')[0]
    if (!/\.tsx?$/.test(source) || present.has(source)) continue
    const stem = join(root, 'dist', source.replace(/\.tsx?$/, ''))
    for (const ending of ['.js', '.js.map', '.d.ts']) rmSync(stem + ending, { force: true })
  }
}

function buildKernels() {
  const script = join(root, 'kernels', 'build.mjs')
  if (!existsSync(script)) return
  const inputs = [...walk('kernels', /\.(cc|cu|h|txt|mjs|cmake)$/), 'package-lock.json']
  const stamp = join(root, 'build', '.kernel-sources')
  const state = fingerprint(inputs)
  if (read(stamp) === state && hasAddon()) return
  const missing = missingTools()
  const advice = `The kernels need ${missing.join(' and ')}: ${installHint()}`
  if (missing.length && requireKernels) fail(advice)
  if (missing.length)
    return say(`${advice}\n        Going on without: correct, but several times slower (see: espalier doctor).`)
  if (step('building the kernels', process.execPath, [script])) {
    mkdirSync(dirname(stamp), { recursive: true })
    writeFileSync(stamp, state)
  } else if (requireKernels) fail('The native build failed (above).')
  else say('Going on without the kernels: correct, but several times slower (see: espalier doctor).')
}

function hasAddon() {
  const folder = join(root, 'build')
  return existsSync(folder) && readdirSync(folder, { recursive: true }).some((name) => String(name).endsWith('.node'))
}

function missingTools() {
  const compiler = process.env.CXX ? isOnPath(process.env.CXX) : ['g++', 'clang++', 'c++'].some(isOnPath)
  return [!compiler && 'a C++17 compiler', !isOnPath('cmake') && 'CMake'].filter(Boolean)
}

function installHint() {
  if (process.platform === 'darwin') return 'xcode-select --install && brew install cmake'
  if (isOnPath('apt-get')) return 'apt-get install g++ cmake make'
  if (isOnPath('dnf')) return 'dnf install gcc-c++ cmake make'
  if (isOnPath('apk')) return 'apk add g++ cmake make'
  return 'install them with the package manager of your system.'
}

function isOnPath(name) {
  if (name.includes(sep)) return existsSync(name.split(' ')[0])
  const endings = process.platform === 'win32' ? ['.exe', '.cmd'] : ['']
  return (process.env.PATH ?? '')
    .split(delimiter)
    .some((folder) => endings.some((end) => existsSync(join(folder, name + end))))
}

/** Path, size and modification time of each file, one a line. */
function fingerprint(paths) {
  return paths
    .map((path) => {
      const { size, mtimeMs } = statSync(join(root, path))
      return `${path}\t${size}\t${Math.round(mtimeMs)}`
    })
    .join('\n')
}

function walk(folder, pattern, except) {
  const found = []
  const visit = (path) => {
    for (const entry of readdirSync(path, { withFileTypes: true })) {
      const full = join(path, entry.name)
      const name = relative(root, full).split(sep).join('/')
      if (except?.test(name)) continue
      if (entry.isDirectory()) visit(full)
      else if (pattern.test(entry.name)) found.push(name)
    }
  }
  if (existsSync(join(root, folder))) visit(join(root, folder))
  return found.sort()
}

function read(path) {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}

function sha256(text) {
  return createHash('sha256').update(text).digest('hex')
}
