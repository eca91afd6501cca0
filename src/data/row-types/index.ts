// The dataset types. A new one is a file beside this and a line here.
import { DataError, nearest } from '../errors.js'
import { languageModelling } from './language-modelling.js'
import { messages } from './messages.js'
import { preference } from './preference.js'
import { promptCompletion } from './prompt-completion.js'
import type { Row, RowType } from './row-type.js'
import { scored } from './scored.js'
import { tokenized } from './tokenized.js'
import { unpairedPreference } from './unpaired-preference.js'

export const rowTypes = {
  'language-modelling': languageModelling,
  'prompt-completion': promptCompletion,
  messages,
  tokenized,
  preference,
  scored,
  'unpaired-preference': unpairedPreference,
} satisfies Record<string, RowType>

export type RowTypeName = keyof typeof rowTypes
export const rowTypeNames = Object.keys(rowTypes) as [RowTypeName, ...RowTypeName[]]

/** The type of a dataset from the columns of its first row; throws where none or several fit. */
export function detectRowType(row: unknown, place: string): RowTypeName {
  const columns = typeof row === 'object' && row !== null && !Array.isArray(row) ? Object.keys(row as Row) : []
  const matching = rowTypeNames.filter((name) => rowTypes[name].columns.every((column) => columns.includes(column)))
  // The most telling type wins: {prompt, completion, label} is more than {prompt, completion}
  const most = Math.max(0, ...matching.map((name) => rowTypes[name].columns.length))
  const fitting = matching.filter((name) => rowTypes[name].columns.length === most)
  if (fitting.length === 1) return fitting[0]!
  const known = rowTypeNames.map((name) => `${name} ${rowTypes[name].description.split(':')[0]}`).join(', ')
  if (fitting.length > 1) {
    throw new DataError(
      place,
      `the columns fit several dataset types (${fitting.join(', ')}); set \`type\` of the dataset`,
    )
  }
  const wanted = rowTypeNames.flatMap((name) => rowTypes[name].columns)
  const hints = columns.flatMap((column) => {
    const meant = wanted.includes(column) ? undefined : nearest(column, wanted)
    return meant === undefined ? [] : [`"${column}" for "${meant}"?`]
  })
  const sampled = columns.includes('prompt') ? ' (rows of {prompt} alone are for stages that sample the answers)' : ''
  throw new DataError(
    place,
    `columns ${columns.map((column) => `"${column}"`).join(', ') || '(none)'} fit no dataset type (${known})` +
      `${hints.length > 0 ? `; is ${hints.join(' ')}` : sampled}; rename them, or map them with \`columns\``,
  )
}
