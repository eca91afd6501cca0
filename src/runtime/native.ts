// Where the native parts are: the addon and kernel libraries that kernels/build.mjs makes, and the ONNX Runtime library
// that onnxruntime-node installs.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Isa } from './types.js'

export const allIsas: readonly Isa[] = ['avx512bf16', 'avx512', 'avx2', 'portable']

/** The folder of package.json, from the sources as well as from dist. */
export function packageRoot(): string {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'kernels', 'CMakeLists.txt'))) return folder
    if (folder === dirname(folder)) throw new Error('cannot find the folder of the espalier package; install it again')
  }
}

/** `build/`, or `ESPALIER_BUILD` for sanitizer builds. */
export function buildFolder(): string {
  return process.env.ESPALIER_BUILD || join(packageRoot(), 'build')
}

export function kernelLibraryPath(isa: string): string {
  return join(buildFolder(), `espalier_kernels_${isa}.so`)
}

/** @throws Error when onnxruntime-node has no library for this platform */
export function onnxRuntimeLibraryPath(): string {
  const entry = createRequire(import.meta.url).resolve('onnxruntime-node')
  const folder = join(dirname(dirname(entry)), 'bin', 'napi-v6', process.platform, process.arch)
  const name = existsSync(folder)
    ? readdirSync(folder).find((file) => /^libonnxruntime(\.so|[.\d]*\.dylib)/.test(file))
    : undefined
  if (!name)
    throw new Error(`onnxruntime-node has no library for ${process.platform} ${process.arch} (looked in ${folder})`)
  return join(folder, name)
}

/** Threads to use when nobody says: the CPUs this process may run on, within its cgroup's quota. */
export function availableThreads(): number {
  return Math.max(1, Math.min(availableParallelism(), Math.ceil(cgroupCpus())))
}

function cgroupCpus(): number {
  const read = (path: string) => {
    try {
      return readFileSync(path, 'utf8').trim().split(' ').map(Number)
    } catch {
      return []
    }
  }
  const [quota, period] = read('/sys/fs/cgroup/cpu.max')
  if (quota && period) return quota / period // `max` is NaN
  const [quotaV1] = read('/sys/fs/cgroup/cpu/cpu.cfs_quota_us')
  const [periodV1] = read('/sys/fs/cgroup/cpu/cpu.cfs_period_us')
  return quotaV1 && periodV1 && quotaV1 > 0 ? quotaV1 / periodV1 : Number.POSITIVE_INFINITY
}

/** From the option, else `ESPALIER_THREADS`, else what is available. */
export function chooseThreads(option: number | undefined): number {
  const text = process.env.ESPALIER_THREADS
  const threads = option ?? (text ? Number(text) : availableThreads())
  if (!Number.isInteger(threads) || threads < 1 || threads > 1024)
    throw new Error(
      `${option === undefined ? `ESPALIER_THREADS=${text}` : `threads: ${option}`} must be a whole number from 1 to 1024`,
    )
  return threads
}
