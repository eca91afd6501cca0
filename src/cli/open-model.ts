// Opens the model that a command names, with the progress of fetching and importing on standard error.
import type { LanguageModel, OpenModelOptions } from '../index.js'
import { describeFetch, type ProgressPrinter, progressPrinter } from './progress.js'

/** The words of a command that opens a base. */
export interface ModelFlags {
  readonly base: string
  readonly precision: 'fast' | 'fp32'
  readonly format: OpenModelOptions['format']
}

export async function openModelOf(
  { base, precision, format }: ModelFlags,
  options: Pick<OpenModelOptions, 'adapter' | 'allowPartial' | 'engine' | 'signal'>,
): Promise<{ sdk: typeof import('../index.js'); model: LanguageModel; progress: ProgressPrinter }> {
  const sdk = await import('../index.js')
  const progress = progressPrinter()
  const model = await sdk.openModel({
    base,
    precision: precision === 'fp32' ? 'strict' : 'fast',
    format,
    ...options,
    onProgress: (at) => progress.show(...describeFetch(at)),
  })
  progress.end()
  return { sdk, model, progress }
}
