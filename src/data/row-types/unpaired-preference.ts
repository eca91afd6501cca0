// Rows of {prompt, completion, label}: one answer that is desirable (true) or not.
import { brief } from '../errors.js'
import { defineGroupedRowType } from './grouped.js'
import { promptCompletion } from './prompt-completion.js'
import type { Row } from './row-type.js'

export const unpairedPreference = defineGroupedRowType<{ row: Row; label: number }>({
  name: 'unpaired-preference',
  description: '{prompt, completion, label}: an answer that is desirable or not',
  columns: ['prompt', 'completion', 'label'],
  optionalColumns: ['tools'],
  groupSize: 1,
  valueName: 'label',
  parse(row, fail) {
    const { label } = row
    if (typeof label !== 'boolean' && label !== 0 && label !== 1) {
      fail(
        `"label" must be true (desirable) or false, not ${brief(label)}; where it means something else, set \`type: 'prompt-completion'\``,
      )
    }
    return { row, label: Number(label) }
  },
  encodeGroups: ({ row, label }, context, place) => ({
    groups: [{ documents: [promptCompletion.encode(row, place, context)], value: label }],
    ties: 0,
  }),
})
