// Arrow IPC, the file and the stream form (the `.arrow` files of Hugging Face datasets are streams), by record batch.
import { DataError, messageOf } from '../errors.js'
import { defineFormat, type PlacedRow, plainValue, remedyFor } from './format.js'

async function* read(path: string): AsyncGenerator<PlacedRow> {
  const { readRecordBatches } = await import('../arrow.js')
  let index = 0
  let batch = 0
  try {
    for await (const rows of readRecordBatches(path)) {
      for (const row of rows) yield { row: plainValue(row), place: `${path} row ${index++}` }
      batch++
    }
  } catch (error) {
    if (error instanceof DataError) throw error
    const place = `${path} record batch ${batch}`
    throw new DataError(place, `cannot be read as Arrow IPC: ${messageOf(error)}${remedyFor(error)}`, {
      cause: error,
    })
  }
}

export const arrow = defineFormat({ name: 'arrow', extensions: ['.arrow', '.feather', '.ipc'], read })
