// Answers as rows to train on: of preferences for `reward` and `dpo`, of single answers for `kto`.
import { renameSync, rmSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import type { Row } from '../../data/index.js'
import { syncFolder, writeSynced } from '../checkpoint.js'
import type { Annotation } from './log.js'

export const exportTypes = ['preference', 'unpaired-preference'] as const
export type ExportType = (typeof exportTypes)[number]

export interface ExportResult {
  readonly path: string
  readonly rows: number
  /** Answers that make no row of this type: skipped pairs, ties, for preferences also pairs of which both are bad. */
  readonly leftOut: number
}

const common = ({ prompt, tools, by }: Annotation): Row => ({
  prompt,
  ...(tools === undefined ? {} : { tools }),
  annotator: by,
})

/** By type: the rows that an answer makes. A row names who annotated. */
const rowsOf: Record<ExportType, (annotation: Annotation) => Row[]> = {
  preference(annotation) {
    const { first, second, label } = annotation
    if (label !== 'first' && label !== 'second') return []
    const [chosen, rejected] = label === 'first' ? [first, second] : [second, first]
    return [{ ...common(annotation), chosen, rejected }]
  },
  'unpaired-preference'(annotation) {
    const { first, second, label } = annotation
    if (label === 'tie' || label === 'skip') return []
    return [
      { ...common(annotation), completion: first, label: label === 'first' },
      { ...common(annotation), completion: second, label: label === 'second' },
    ]
  },
}

/** Writes answers as JSON lines, aside and then renamed. */
export function exportAnnotations(annotations: readonly Annotation[], path: string, type: ExportType): ExportResult {
  const rows = annotations.map(rowsOf[type])
  const text = rows.flat().map((row) => `${JSON.stringify(row)}\n`)
  const file = resolve(path)
  const aside = join(dirname(file), `.${basename(file)}-${process.pid}`)
  try {
    writeSynced(aside, text.join(''))
    renameSync(aside, file)
  } catch (error) {
    rmSync(aside, { force: true })
    throw new Error(`${path}: cannot be written (${(error as Error).message})`, { cause: error })
  }
  syncFolder(dirname(file))
  return { path, rows: text.length, leftOut: rows.filter(({ length }) => length === 0).length }
}
