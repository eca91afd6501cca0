// `--set a.b=value`: settings of a recipe changed from outside.
import { RecipeError } from './errors.js'

/** `learningRate=1e-4` → the path and the value: JSON where it is JSON, else the text itself. */
export function parseOverride(text: string): { path: string[]; value: unknown } {
  const equals = text.indexOf('=')
  const path = text.slice(0, Math.max(0, equals)).split('.')
  if (equals < 0 || path.some((part) => !/^[\w-]+$/.test(part) || part === '__proto__')) {
    throw new RecipeError(`--set ${text}: write it as path.to.key=value, for example --set stage.learningRate=1e-4`)
  }
  const raw = text.slice(equals + 1)
  try {
    return { path, value: JSON.parse(raw) as unknown }
  } catch {
    return { path, value: raw }
  }
}

/** A copy with the value at the path; what lies beside the path is shared, not copied. */
export function withValue(target: unknown, path: readonly string[], value: unknown): unknown {
  const [key, ...rest] = path
  if (key === undefined) return value
  if (Array.isArray(target)) {
    if (!/^\d+$/.test(key)) throw new RecipeError(`--set: ${key} is no index of a list`)
    const copy = [...target]
    copy[Number(key)] = withValue(copy[Number(key)], rest, value)
    return copy
  }
  const record = typeof target === 'object' && target !== null ? (target as Record<string, unknown>) : {}
  return { ...record, [key]: withValue(Object.hasOwn(record, key) ? record[key] : undefined, rest, value) }
}
