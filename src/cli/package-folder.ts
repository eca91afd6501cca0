// The folder of the package, from the sources as well as from dist.
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export function packageFolder(): string {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'bin', 'espalier.mjs'))) return folder
    if (folder === dirname(folder)) throw new Error('cannot find the folder of the espalier package; install it again')
  }
}
