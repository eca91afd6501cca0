// Rows of {inputIds, labels?}: already tokenized; without labels every token is trained.
import { brief } from '../errors.js'
import { defineRowType, ignoreIndex } from './row-type.js'

interface Parsed {
  inputIds: ArrayLike<number>
  labels: ArrayLike<number> | undefined
}

function parseIds(value: unknown, name: string, fail: (problem: string) => never): ArrayLike<number> {
  if (!Array.isArray(value) && !ArrayBuffer.isView(value))
    fail(`"${name}" must be a list of integers, not ${brief(value)}`)
  return value as ArrayLike<number>
}

export const tokenized = defineRowType<Parsed>({
  name: 'tokenized',
  description: '{inputIds, labels?}: token ids; labels of −100 are not trained',
  columns: ['inputIds'],
  optionalColumns: ['labels'],
  isSupervised: false,
  canSplit: true,
  parse(row, fail) {
    const inputIds = parseIds(row.inputIds, 'inputIds', fail)
    const labels = row.labels === undefined || row.labels === null ? undefined : parseIds(row.labels, 'labels', fail)
    if (labels && labels.length !== inputIds.length) {
      fail(
        `"labels" has ${labels.length} entries and "inputIds" ${inputIds.length}; they must be equally many (labels are not shifted)`,
      )
    }
    return { inputIds, labels }
  },
  encode({ inputIds, labels }, { tokenizer }) {
    const ids = new Int32Array(inputIds.length)
    const targets = new Int32Array(inputIds.length)
    for (let i = 0; i < ids.length; i++) {
      const id = inputIds[i]!
      const label = labels ? labels[i]! : id
      if (!Number.isInteger(id) || id < 0 || id >= tokenizer.vocabSize) {
        throw new Error(
          `inputIds[${i}] is ${brief(id)}; ids of this tokenizer are integers from 0 to ${tokenizer.vocabSize - 1}`,
        )
      }
      if (label !== ignoreIndex && !(Number.isInteger(label) && label >= 0 && label < tokenizer.vocabSize)) {
        throw new Error(`labels[${i}] is ${brief(label)}; labels are ids or ${ignoreIndex}`)
      }
      ids[i] = id
      targets[i] = label
    }
    return { inputIds: ids, labels: targets }
  },
})
