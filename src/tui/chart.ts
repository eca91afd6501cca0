// Curves in characters: braille dots for lines (2 × 4 dots a cell), eighths of a block for sparklines.

export interface Point {
  x: number
  y: number
}

export interface ChartOptions {
  width: number
  height: number
  /** Drawn as a line of dots. */
  line: readonly Point[]
  /** Drawn as single marks over it. */
  marks?: readonly Point[]
  /** Right end of the x axis. */
  maxX: number
}

/** Bit of each dot of a braille cell, by column and row (Unicode U+2800). */
const dotBits = [
  [0x01, 0x02, 0x04, 0x40],
  [0x08, 0x10, 0x20, 0x80],
] as const
const markCharacter = '●'
const labelWidth = 8

/** Lines of text: labels of the value range at the left, the curve at the right. */
export function drawChart({ width, height, line, marks = [], maxX }: ChartOptions): string[] {
  const columns = Math.max(4, width - labelWidth)
  const finite = [...line, ...marks].filter(({ y }) => Number.isFinite(y))
  const blank = () => Array.from({ length: height }, () => ' '.repeat(width))
  if (finite.length === 0) return blank()
  let low = Math.min(...finite.map(({ y }) => y))
  let high = Math.max(...finite.map(({ y }) => y))
  if (high - low < 1e-9) {
    low -= 0.5
    high += 0.5
  }
  const dotsX = columns * 2
  const dotsY = height * 4
  const column = (x: number) => Math.min(dotsX - 1, Math.max(0, Math.round((x / Math.max(1, maxX)) * (dotsX - 1))))
  const row = (y: number) => Math.round(((high - y) / (high - low)) * (dotsY - 1))
  const cells = Array.from({ length: height }, () => new Uint8Array(columns))
  const dot = (x: number, y: number) => {
    cells[y >> 2]![x >> 1]! |= dotBits[x & 1]![y & 3]!
  }
  let before: { x: number; y: number } | undefined
  for (const point of line) {
    if (!Number.isFinite(point.y)) continue
    const at = { x: column(point.x), y: row(point.y) }
    const from = before ?? at
    const steps = Math.max(1, Math.abs(at.x - from.x), Math.abs(at.y - from.y))
    for (let i = 0; i <= steps; i++) {
      dot(Math.round(from.x + ((at.x - from.x) * i) / steps), Math.round(from.y + ((at.y - from.y) * i) / steps))
    }
    before = at
  }
  const text = cells.map((cellRow) => Array.from(cellRow, (bits) => (bits ? String.fromCharCode(0x2800 + bits) : ' ')))
  for (const { x, y } of marks) if (Number.isFinite(y)) text[row(y) >> 2]![column(x) >> 1] = markCharacter
  const label = (value: number) =>
    `${value
      .toPrecision(4)
      .slice(0, labelWidth - 2)
      .padStart(labelWidth - 2)} `
  return text.map((characters, i) => {
    const value = i === 0 ? label(high) : i === height - 1 ? label(low) : ' '.repeat(labelWidth - 1)
    return `${value}│${characters.join('')}`
  })
}

const eighths = '▁▂▃▄▅▆▇█'

/** The last `width` values, or means of neighbours where there are more. */
export function sparkline(values: readonly number[], width: number): string {
  if (width < 1 || values.length === 0) return ''
  const perCell = Math.max(1, values.length / width)
  const means: number[] = []
  for (let at = 0; at < values.length - 1e-9; at += perCell) {
    const part = values.slice(Math.floor(at), Math.max(Math.floor(at) + 1, Math.floor(at + perCell)))
    means.push(part.reduce((a, b) => a + b, 0) / part.length)
  }
  const low = Math.min(...means)
  const range = Math.max(...means) - low
  return means
    .slice(0, width)
    .map((mean) => eighths[range > 0 ? Math.min(7, Math.floor(((mean - low) / range) * 8)) : 3])
    .join('')
}

/** [█████░░░░░] */
export function bar(share: number, width: number): string {
  const inner = Math.max(1, width - 2)
  const full = Math.round(Math.min(1, Math.max(0, share)) * inner)
  return `[${'█'.repeat(full)}${'░'.repeat(inner - full)}]`
}
