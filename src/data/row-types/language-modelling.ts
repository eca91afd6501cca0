// Rows of {text}: every token is trained, the end-of-sequence token included.
import { brief } from '../errors.js'
import { defineRowType, joined, prefixFor, suffixFor } from './row-type.js'

export const languageModelling = defineRowType<string>({
  name: 'language-modelling',
  description: '{text}: plain text, every token trained',
  columns: ['text'],
  optionalColumns: [],
  isSupervised: false,
  canSplit: true,
  parse(row, fail) {
    return typeof row.text === 'string' ? row.text : fail(`"text" must be a string, not ${brief(row.text)}`)
  },
  encode(text, context) {
    if (text === '') return joined([])
    return joined([
      { ids: prefixFor(text, context.tokenizer), isTrained: true },
      { ids: context.tokenizer.encode(text), isTrained: true },
      { ids: suffixFor(text, context), isTrained: true },
    ])
  },
})
