// npm test [-- what vitest takes]: setup, all of vitest, the C++ tests of the kernels. Named files or folders run those
// only. The last line is `N passed, N failed`.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { testKernels } from './test-kernels.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const args = process.argv.slice(2).filter((arg) => arg !== '--')
const isAll = !args.some((arg) => !arg.startsWith('-'))

const setup = spawnSync(process.execPath, [join(root, 'scripts', 'setup.mjs'), '--require-kernels'], {
  stdio: 'inherit',
})
if (setup.status !== 0) process.exit(setup.status ?? 1)

/** The software Vulkan device that Debian's chromium package ships, for tests on WebGPU where there is no GPU. */
const softwareVulkan = '/usr/lib/chromium/vk_swiftshader_icd.json'
const env = { ...process.env }
if (!env.VK_ICD_FILENAMES && existsSync(softwareVulkan)) env.VK_ICD_FILENAMES = softwareVulkan

const results = join(root, 'build', 'test-results.json')
mkdirSync(dirname(results), { recursive: true })
rmSync(results, { force: true })
const vitest = spawnSync(
  process.execPath,
  [
    join(root, 'node_modules', 'vitest', 'vitest.mjs'),
    'run',
    '--reporter=default',
    '--reporter=json',
    `--outputFile.json=${results}`,
    ...args,
  ],
  { cwd: root, stdio: 'inherit', env },
)
const report = existsSync(results) ? JSON.parse(readFileSync(results, 'utf8')) : undefined
let passed = report?.numPassedTests ?? 0
// A file that does not load has no tests to count
const brokenFiles =
  report?.testResults.filter(
    ({ status, assertionResults }) => status === 'failed' && assertionResults.every((test) => test.status !== 'failed'),
  ) ?? []
let failed = (report?.numFailedTests ?? 0) + brokenFiles.length
if (vitest.status !== 0 && failed === 0) failed = 1
const skipped =
  report?.testResults.flatMap(({ assertionResults }) =>
    assertionResults.filter(({ status }) => status === 'pending' || status === 'skipped'),
  ) ?? []
if (skipped.length > 0) console.log(`\nskipped:\n${skipped.map(({ fullName }) => `  ${fullName}`).join('\n')}`)

if (isAll) {
  console.log('\nkernels (C++)')
  const kernels = testKernels()
  passed += kernels.passed
  failed += kernels.failed.length
}
console.log(`\n${passed} passed, ${failed} failed`)
process.exit(failed > 0 ? 1 : 0)
