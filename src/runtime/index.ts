// Opens a runtime: the addon where it can be used, else lowered graphs through onnxruntime-node (design §4).
import { AddonUnavailableError, openAddon, usableIsas } from './addon.js'
import { openStock } from './stock.js'
import type { Runtime, RuntimeInfo, RuntimeOptions } from './types.js'

export { usableIsas } from './addon.js'
export * from './types.js'

/**
 * Open it before anything else imports onnxruntime-node: the first environment of a process decides the thread pool.
 * @throws Error when an option cannot be met, or when the addon is unusable and `allowFallback` is false
 */
export async function openRuntime(options: RuntimeOptions = {}): Promise<Runtime> {
  const provider = options.provider ?? 'cpu'
  if (provider !== 'cpu') return openStock(options, `there are no kernels for the ${provider} provider`)
  if (options.kernels === false) return openStock(options, 'kernels were switched off')
  try {
    return openAddon(options)
  } catch (error) {
    if (!(error instanceof AddonUnavailableError) || options.allowFallback === false) throw error
    return openStock(options, error.message)
  }
}

/** What `espalier doctor` reports: which path a run here takes, and why. */
export async function diagnose(options: RuntimeOptions = {}): Promise<RuntimeInfo> {
  const runtime = await openRuntime(options)
  await runtime.close()
  return runtime.info
}

/** The instruction sets that tests and benchmarks can force here. */
export function forcibleIsas(): readonly string[] {
  return usableIsas()
}
