// Where the reference values are: another set of the same form is named by ESPALIER_GOLDEN.
import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The folder of reference values (see its README); its parts are `losses`, `models` and `quant`. */
export function goldenDir(...parts: string[]): string {
  const root = process.env.ESPALIER_GOLDEN ?? fileURLToPath(new URL('./values', import.meta.url))
  return resolve(root, ...parts)
}
