// Which op runs where: our kernel, or its standard lowering on each provider of onnxruntime-node.
import { openRuntime } from '../../src/runtime/index.js'
import type { OpCase } from './case.js'
import { compareCase, traceCase } from './harness.js'
import { runOracle } from './oracle.js'

/** One row per op: kernel and lowering, each `yes`, `no`, or why not. */
export async function supportTable(cases: readonly OpCase[]): Promise<Record<string, Record<string, string>>> {
  const runtime = await openRuntime({ allowFallback: true })
  const table: Record<string, Record<string, string>> = {}
  for (const c of cases) {
    if (table[c.op]) continue
    const attempt = async (run: () => Promise<unknown>) => {
      try {
        await run()
        return 'yes'
      } catch (error) {
        return error instanceof Error ? error.message.split('\n')[0]!.slice(0, 60) : String(error)
      }
    }
    table[c.op] = {
      [`kernel (${runtime.info.isa ?? 'none'})`]: runtime.info.kernels
        ? await attempt(() => compareCase(runtime, c, 'strict'))
        : (runtime.info.reason ?? 'no'),
      'lowering (cpu)': await attempt(() => {
        const { graph, feeds } = traceCase(c, { kernels: false, floatType: 'f32', isNarrow: false })
        return runOracle(graph, feeds)
      }),
    }
  }
  await runtime.close()
  return table
}
