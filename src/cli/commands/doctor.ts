// `espalier doctor`: which path a run here takes, how fast the machine is, what is missing and what to do about it.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { freemem, totalmem } from 'node:os'
import { defineCommand, shared } from '../command.js'
import { integer, pairs } from '../table.js'

const probeMs = 200

function versionOf(command: string, args: string[] = ['--version']): string | undefined {
  const { status, stdout } = spawnSync(command, args, { encoding: 'utf8' })
  return status === 0 ? stdout.split('\n')[0]!.trim() : undefined
}

export const doctor = defineCommand({
  summary: 'say which path a run takes here, and what is missing',
  options: { json: shared.json },
  async run({ json }, { print }) {
    const sdk = await import('../../index.js')
    const runtime = await sdk.openRuntime()
    const { info } = runtime
    const ceiling = info.kernels ? await runtime.measureCeiling(probeMs) : undefined
    const bandwidth = info.kernels ? await runtime.measureReadBandwidth() : undefined
    await runtime.close()
    const tools = {
      compiler: versionOf(process.env.CXX ?? 'c++'),
      cmake: versionOf('cmake'),
      pip: versionOf('python3', ['-m', 'pip', '--version'])?.replace(/ from .*/, ''),
    }
    const bases: Record<string, boolean> = {}
    for (const name of Object.keys(sdk.knownBases)) {
      bases[name] = await sdk.resolveBase(name, { offline: true }).then(
        () => true,
        () => false,
      )
    }
    const advice = [
      !info.kernels && info.reason,
      !info.kernels && !tools.compiler && 'install a C++17 compiler (Debian: apt-get install g++)',
      !info.kernels && !tools.cmake && 'install CMake (Debian: apt-get install cmake)',
      !tools.pip &&
        !Object.values(bases).every(Boolean) &&
        'without pip, known bases come from the Hugging Face hub, or from a .gguf file that you name',
    ].filter((line): line is string => Boolean(line))
    const report = {
      node: process.version,
      platform: `${process.platform} ${process.arch}`,
      kernels: info.kernels,
      provider: info.provider,
      isa: info.isa,
      isas: info.isas,
      threads: info.threads,
      onnxruntime: info.ortVersion,
      ceiling,
      readGbPerSecond: bandwidth,
      memoryMb: { total: totalmem() / 2 ** 20, free: freemem() / 2 ** 20 },
      tools,
      cache: sdk.cacheFolder(),
      bases,
      reason: info.reason,
      advice,
    }
    if (json) return void print(JSON.stringify(report))
    print(
      pairs([
        ['node', `${report.node} on ${report.platform}`],
        [
          'path',
          info.kernels
            ? `our kernels, ${info.isa} (built and usable: ${info.isas.join(', ')})`
            : 'standard operators through onnxruntime-node: correct, several times slower',
        ],
        ['onnxruntime', `${info.ortVersion}, provider ${info.provider}, ${info.threads} threads`],
        [
          'ceiling',
          ceiling && `${Math.round(ceiling.gflops)} GFLOP/s ${ceiling.kind}, reads ${bandwidth!.toFixed(1)} GB/s`,
        ],
        ['memory', `${integer(report.memoryMb.free)} of ${integer(report.memoryMb.total)} MB free`],
        ['compiler', tools.compiler ?? 'none found'],
        ['cmake', tools.cmake ?? 'none found'],
        ['pip', tools.pip ?? 'none found'],
        ['cache', `${report.cache}${existsSync(report.cache) ? '' : ' (empty)'}`],
        ...Object.entries(bases).map(([name, has]) => [name, has ? 'in the cache' : 'not fetched yet'] as const),
      ]),
    )
    for (const line of advice) print(`\n→ ${line}`)
    if (advice.length === 0) print('\nEverything is there.')
  },
})
