// The weights of a Hugging Face folder: one safetensors file or several with an index. Stop 5 of a run.
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { FormatError } from './format-error.js'
import { openSafetensors, type SafetensorsEntry, type SafetensorsFile } from './safetensors.js'

export interface CheckpointTensor {
  entry: SafetensorsEntry
  file: SafetensorsFile
}

export interface Checkpoint {
  /** Weight files, in the order of first use. */
  files: string[]
  tensors: Map<string, CheckpointTensor>
  close(): void
}

const SINGLE = 'model.safetensors'
const INDEX = 'model.safetensors.index.json'
/** An index names each tensor once; a 700B checkpoint's has some 10 MB. */
const MAX_INDEX_BYTES = 200_000_000

/** Reads a small JSON object with a limit on its size. */
export function readJsonObject(path: string, maxBytes = 100_000_000): Record<string, unknown> {
  let text: string
  try {
    const bytes = statSync(path).size
    if (bytes > maxBytes) throw new Error(`${bytes} bytes, at most ${maxBytes} are expected`)
    text = readFileSync(path, 'utf8')
  } catch (error) {
    throw new FormatError(path, 'reading', (error as Error).message)
  }
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Error('not a JSON object')
    return value as Record<string, unknown>
  } catch (error) {
    throw new FormatError(path, 'JSON', (error as Error).message)
  }
}

/** Shards lie in the folder itself: a name with a path in it could read any file. */
function checkShardName(name: unknown, tensor: string, index: string): string {
  if (typeof name !== 'string' || !/^[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors$/.test(name) || name.includes('..')) {
    throw new FormatError(
      index,
      `weight_map entry ${JSON.stringify(tensor)}`,
      `${JSON.stringify(name)} is not the name of a .safetensors file in this folder`,
    )
  }
  return name
}

function readIndex(path: string): Map<string, string> {
  const { weight_map: map } = readJsonObject(path, MAX_INDEX_BYTES)
  if (typeof map !== 'object' || map === null || Array.isArray(map)) {
    throw new FormatError(path, 'weight_map', 'missing or no object')
  }
  return new Map(Object.entries(map).map(([tensor, shard]) => [tensor, checkShardName(shard, tensor, path)]))
}

/** Opens the weights of a folder and checks the index against the shards. Throws FormatError. */
export function openCheckpoint(dir: string): Checkpoint {
  const index = join(dir, INDEX)
  const single = join(dir, SINGLE)
  const map = existsSync(index) ? readIndex(index) : null
  if (!map && !existsSync(single)) {
    throw new FormatError(dir, 'weights', `neither ${SINGLE} nor ${INDEX} is there (PyTorch .bin files are not read)`)
  }
  const files = map ? [...new Set(map.values())] : [SINGLE]
  const open = new Map<string, SafetensorsFile>()
  const close = () => {
    for (const file of open.values()) file.close()
  }
  try {
    for (const name of files) open.set(name, openSafetensors(join(dir, name)))
    const tensors = new Map<string, CheckpointTensor>()
    if (map) {
      for (const [name, shard] of map) {
        const file = open.get(shard)!
        const entry = file.tensors.get(name)
        if (!entry) throw new FormatError(index, `weight_map entry ${JSON.stringify(name)}`, `not in ${shard}`)
        tensors.set(name, { entry, file })
      }
    } else {
      const file = open.get(SINGLE)!
      for (const [name, entry] of file.tensors) tensors.set(name, { entry, file })
    }
    return { files: files.map((name) => join(dir, name)), tensors, close }
  } catch (error) {
    close()
    throw error
  }
}
