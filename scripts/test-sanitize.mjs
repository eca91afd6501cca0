// npm run test:sanitize [-- address|undefined] [-- test files]: builds the native code with a sanitizer into
// build/sanitize-<name> and runs the runtime's and the kernels' tests over it. In these builds every tensor, buffer and
// scratch block has an allocation of its own, exactly as large as asked for, so that one byte past its end is an error.
// Node itself is not instrumented, so the address sanitizer's runtime is preloaded, and leaks (of Node's own) are not looked for.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from '../kernels/build.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const args = process.argv.slice(2).filter((arg) => arg !== '--')
const sanitizers = args.filter((arg) => arg === 'address' || arg === 'undefined')
const files = args.filter((arg) => !sanitizers.includes(arg))

/** The sanitizer's runtime library of the compiler in use. */
function runtimeLibrary(name) {
  const candidates =
    process.arch === 'arm64'
      ? [`lib${name}.so`, `libclang_rt.${name}-aarch64.so`]
      : [`lib${name}.so`, `libclang_rt.${name}-x86_64.so`]
  for (const candidate of candidates) {
    const { stdout } = spawnSync(process.env.CXX || 'c++', [`-print-file-name=${candidate}`], { encoding: 'utf8' })
    if (stdout?.trim().startsWith('/') && existsSync(stdout.trim())) return stdout.trim()
  }
  throw new Error(`the compiler has no ${candidates.join(' or ')}: install its sanitizer runtime`)
}

let failed = false
process.on('uncaughtException', (error) => {
  console.error(`[test:sanitize] ${error.message}`)
  process.exit(1)
})
for (const sanitize of sanitizers.length ? sanitizers : ['address', 'undefined']) {
  const folder = await build({ sanitize })
  console.error(`[test:sanitize] running the tests with the ${sanitize} sanitizer`)
  const { status } = spawnSync(
    process.execPath,
    [join(root, 'node_modules/vitest/vitest.mjs'), 'run', ...(files.length ? files : ['test/runtime', 'test/ops'])],
    {
      cwd: root,
      stdio: 'inherit',
      env: {
        ...process.env,
        ESPALIER_BUILD: folder,
        ESPALIER_SANITIZER: sanitize,
        ...(sanitize === 'address' && process.platform === 'linux' ? { LD_PRELOAD: runtimeLibrary('asan') } : {}),
        ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:detect_odr_violation=0',
        UBSAN_OPTIONS: 'print_stacktrace=1:abort_on_error=1',
      },
    },
  )
  if (status !== 0) failed = true
}
process.exit(failed ? 1 : 0)
