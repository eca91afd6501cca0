// Row types whose rows are groups of documents that belong together: the two sides of a preference, or one completion with
// a label. One more way for a row to become documents (stop 6 of a run).
import { DataError, messageOf } from '../errors.js'
import type { EncodeContext, EncodedRow, Row, RowType } from './row-type.js'

/** Documents of one group, and the number that the group carries. */
export interface EncodedGroup {
  documents: EncodedRow[]
  value: number
}

export interface EncodedGroups {
  groups: EncodedGroup[]
  /** Comparisons that a row leaves out because neither side is better. */
  ties: number
}

export interface GroupedRowType extends RowType {
  /** Documents of a group: 2 of pairs, the chosen one first. */
  groupSize: number
  /** What `value` is, as a stage asks for it. */
  valueName: string
  encodeGroups(row: unknown, place: string, context: EncodeContext): EncodedGroups
}

export interface GroupedRowTypeDefinition<T>
  extends Omit<GroupedRowType, 'encode' | 'encodeGroups' | 'isSupervised' | 'canSplit'> {
  /** The row in the form that `encodeGroups` takes; `fail` throws with the place and what to do. */
  parse(row: Row, fail: (problem: string) => never): T
  encodeGroups(row: T, context: EncodeContext, place: string): EncodedGroups
}

/** A row type whose parsed rows others may read. */
export type ParsedRowType<T> = GroupedRowType & Pick<GroupedRowTypeDefinition<T>, 'parse'>

export function defineGroupedRowType<T>(definition: GroupedRowTypeDefinition<T>): ParsedRowType<T> {
  const { name, columns } = definition
  return {
    ...definition,
    isSupervised: true,
    canSplit: false,
    encode(_, place) {
      throw new DataError(place, `rows of type ${name} are not single documents; take a stage that learns from them`)
    },
    encodeGroups(row, place, context) {
      const fail = (problem: string): never => {
        throw new DataError(place, problem)
      }
      if (typeof row !== 'object' || row === null || Array.isArray(row)) {
        fail(`a row must be an object with ${columns.map((column) => `"${column}"`).join(' and ')}`)
      }
      const parsed = definition.parse(row as Row, fail)
      try {
        return definition.encodeGroups(parsed, context, place)
      } catch (error) {
        if (error instanceof DataError) throw error
        throw new DataError(place, messageOf(error), { cause: error })
      }
    },
  }
}

export const isGrouped = (type: RowType): type is GroupedRowType => 'encodeGroups' in type
