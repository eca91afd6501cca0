// Hugging Face folders for tests: the tiny reference models that can be imported.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { architectures } from '../../src/models/index.js'
import { goldenDir } from '../golden/folder.js'

export interface TinyFolder {
  name: string
  dir: string
  modelType: string
  isSupported: boolean
}

export function tinyFolders(): TinyFolder[] {
  const root = goldenDir('models/tiny')
  return readdirSync(root, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => {
      const dir = join(root, name)
      const { model_type: modelType } = JSON.parse(readFileSync(join(dir, 'config.json'), 'utf8')) as {
        model_type: string
      }
      return { name, dir, modelType, isSupported: Object.hasOwn(architectures, modelType) }
    })
}
