// Numbers and text fitted to a screen.

/** One line of at most `width` characters. */
export function fit(text: string, width: number): string {
  const line = text.replaceAll(/\s*\n\s*/g, ' ').trimEnd()
  return line.length <= width ? line : `${line.slice(0, Math.max(0, width - 1))}…`
}

/** 1:05:09 */
export function clock(seconds: number): string {
  if (!Number.isFinite(seconds)) return '–'
  const whole = Math.max(0, Math.round(seconds))
  const two = (value: number) => String(value).padStart(2, '0')
  const hours = Math.floor(whole / 3600)
  return `${hours > 0 ? `${hours}:${two(Math.floor(whole / 60) % 60)}` : Math.floor(whole / 60)}:${two(whole % 60)}`
}

export const megabytes = (mb: number): string =>
  mb >= 10_000 ? `${(mb / 1024).toFixed(1)} GB` : `${Math.round(mb)} MB`
export const percent = (share: number): string => `${Math.round(share * 100)} %`

/** Models and data may say anything; what would steer the terminal is not shown. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
export const printable = (text: string) => text.replace(/\t/g, '  ').replace(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/g, '')
