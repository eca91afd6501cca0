// Small tables and numbers for people.

/** Rows of label and value, the values aligned. */
export function pairs(rows: readonly (readonly [string, string | number | undefined])[], indent = ''): string {
  const shown = rows.filter(([, value]) => value !== undefined)
  const width = Math.max(...shown.map(([label]) => label.length)) + 2
  return shown.map(([label, value]) => `${indent}${label.padEnd(width)}${value}`).join('\n')
}

/** 95 s, 4 min 05 s, 2 h 10 min */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?'
  if (seconds < 100) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`
  const minutes = Math.floor(seconds / 60)
  if (minutes < 100) return `${minutes} min ${String(Math.round(seconds % 60)).padStart(2, '0')} s`
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, '0')} min`
}

export const percent = (share: number): string => `${(100 * share).toFixed(1)} %`
export const integer = (value: number): string => Math.round(value).toLocaleString('en-US')
