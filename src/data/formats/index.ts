// The dataset formats. A new one is a file beside this and a line here.
import { extname } from 'node:path'
import { DataError } from '../errors.js'
import { arrow } from './arrow.js'
import type { Format } from './format.js'
import { jsonl } from './jsonl.js'
import { parquet } from './parquet.js'

export const formats = { jsonl, parquet, arrow } satisfies Record<string, Format>

export type FormatName = keyof typeof formats
export const formatNames = Object.keys(formats) as [FormatName, ...FormatName[]]

/** The format of a file by the ending of its name. */
export function formatOf(path: string): Format {
  const extension = extname(path).toLowerCase()
  const found = Object.values<Format>(formats).find((format) => format.extensions.includes(extension))
  if (found) return found
  const known = Object.values<Format>(formats).flatMap((format) => format.extensions)
  throw new DataError(
    path,
    `the ending "${extension}" names no known format (${known.join(', ')}); set \`format\` of the dataset`,
  )
}
