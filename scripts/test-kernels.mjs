// Compiles every kernels/test/NAME_test.cc with its kernels for each instruction set that this processor has, and runs it.
// Binaries stay in build/kernel-tests until a source changes.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const kernels = join(root, 'kernels')

/** Flags as kernels/CMakeLists.txt gives them, and what /proc/cpuinfo must list. */
const avx2 = ['-mavx2', '-mfma', '-mf16c']
const avx512 = [...avx2, '-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl']
const isas = {
  portable: { flags: [], needs: [] },
  avx2: { flags: avx2, needs: ['avx2', 'fma', 'f16c'] },
  avx512: { flags: avx512, needs: ['avx2', 'fma', 'f16c', 'avx512f', 'avx512bw', 'avx512dq', 'avx512vl'] },
  avx512bf16: {
    flags: [...avx512, '-mavx512bf16', '-mavx512vnni'],
    needs: ['avx512f', 'avx512bw', 'avx512dq', 'avx512vl', 'avx512_bf16', 'avx512_vnni'],
  },
}

function processorFlags() {
  try {
    return new Set(/^flags\s*:\s*(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1].split(' '))
  } catch {
    return new Set()
  }
}

function sourceHash() {
  const hash = createHash('sha256')
  for (const entry of readdirSync(kernels, { recursive: true }).map(String).sort()) {
    if (/\.(cc|h)$/.test(entry)) hash.update(entry).update(readFileSync(join(kernels, entry)))
  }
  return hash.digest('hex')
}

/** The kernel of the same name, or for a test without one all kernels that have no test of their own. */
function subjects(name) {
  const own = `ops/${name}.cc`
  if (existsSync(join(kernels, own))) return [own]
  return readdirSync(join(kernels, 'ops'))
    .filter((file) => file.endsWith('.cc') && !existsSync(join(kernels, 'test', file.replace(/\.cc$/, '_test.cc'))))
    .map((file) => `ops/${file}`)
}

function compile(name, isa, binary) {
  const sources = [`test/${name}_test.cc`, ...subjects(name), 'cpu/ceiling.cc'].map((file) => join(kernels, file))
  const args = ['-std=gnu++17', '-O2', '-g1', '-pthread', '-Wall', '-Wextra', '-Werror', '-Wno-psabi']
  args.push(...isas[isa].flags, `-DESPALIER_ISA_${isa.toUpperCase()}=1`, `-I${kernels}`, ...sources, '-o', binary)
  return spawnSync(process.env.CXX ?? 'c++', args, { stdio: ['ignore', 'inherit', 'inherit'] }).status === 0
}

/** @returns how many passed and which failed */
export function testKernels(log = console.log) {
  const folder = join(root, 'build', 'kernel-tests')
  mkdirSync(folder, { recursive: true })
  const has = processorFlags()
  const hash = sourceHash()
  const stamp = join(folder, 'sources')
  const isFresh = existsSync(stamp) && readFileSync(stamp, 'utf8') === hash
  const names = readdirSync(join(kernels, 'test')).flatMap((file) => /^(.+)_test\.cc$/.exec(file)?.[1] ?? [])
  const failed = []
  let passed = 0
  for (const name of names) {
    for (const [isa, { needs }] of Object.entries(isas)) {
      const missing = needs.filter((flag) => !has.has(flag))
      if (missing.length > 0) {
        log(`  skipped  ${name} (${isa}): this processor has no ${missing.join(', ')}`)
        continue
      }
      const started = performance.now()
      const binary = join(folder, `${name}-${isa}`)
      const isBuilt = (isFresh && existsSync(binary)) || compile(name, isa, binary)
      const result = isBuilt ? spawnSync(binary, { encoding: 'utf8', timeout: 600_000 }) : undefined
      const ok = result?.status === 0
      const seconds = ((performance.now() - started) / 1000).toFixed(1)
      log(
        `  ${ok ? 'passed ' : 'FAILED '}  ${name} (${isa}), ${seconds} s${ok ? '' : `\n${result?.stdout ?? 'does not compile'}${result?.stderr ?? ''}`}`,
      )
      if (ok) passed++
      else failed.push(`${name} (${isa})`)
    }
  }
  if (failed.length === 0) writeFileSync(stamp, hash)
  return { passed, failed }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { passed, failed } = testKernels()
  console.log(`${passed} passed, ${failed.length} failed`)
  process.exit(failed.length > 0 ? 1 : 0)
}
