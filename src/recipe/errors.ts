// From schema issues to sentences that say where, what, and what to do: an unknown key names the nearest known one.
import type { z } from 'zod'
import { brief, nearest } from '../data/errors.js'

/** A recipe that cannot be used. The message is for people and names the file. */
export class RecipeError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'RecipeError'
  }
}

type Issue = z.core.$ZodIssue
type Schema = z.core.$ZodType
/** What this file reads of zod's definitions. */
interface Definition {
  type: string
  innerType?: Schema
  in?: Schema
  element?: Schema
  valueType?: Schema
  options?: Schema[]
  shape?: Record<string, Schema>
  /** Of a discriminated union: the key whose value chooses the option. */
  discriminator?: string
}

const definitionOf = (schema: Schema): Definition => schema._zod.def as unknown as Definition

/** The options of a union that a value may be one of: of a discriminated union the one that it names. */
function optionsFor({ options = [], discriminator }: Definition, value: unknown): Schema[] {
  if (discriminator === undefined) return options
  const named = (value as Record<string, unknown> | undefined)?.[discriminator]
  const chosen = options.filter((option) =>
    objectsOf(option).some(({ shape }) => {
      const { values } = definitionOf(shape![discriminator]!) as unknown as { values?: unknown[] }
      return values?.includes(named)
    }),
  )
  return chosen.length > 0 ? chosen : options
}

/** The object schemas that a schema may stand for, given the value where it is known. */
function objectsOf(schema: Schema, value?: unknown): Definition[] {
  const definition = definitionOf(schema)
  if (definition.shape) return [definition]
  const inner = definition.innerType ?? definition.in
  if (inner) return objectsOf(inner, value)
  return optionsFor(definition, value).flatMap((option) => objectsOf(option, value))
}

/** The schemas at one more key of a value. */
function childrenOf(schema: Schema, key: PropertyKey, value?: unknown): Schema[] {
  const definition = definitionOf(schema)
  if (definition.shape) {
    const child = Object.hasOwn(definition.shape, key) ? definition.shape[String(key)] : undefined
    return child ? [child] : []
  }
  if (definition.element) return [definition.element]
  if (definition.valueType) return [definition.valueType]
  const inner = definition.innerType ?? definition.in
  if (inner) return childrenOf(inner, key, value)
  return optionsFor(definition, value).flatMap((option) => childrenOf(option, key, value))
}

/** Keys that are known at a path of the input. */
export function knownKeys(schema: Schema, path: readonly PropertyKey[], input?: unknown): string[] {
  let at = [schema]
  let value = input
  for (const key of path) {
    at = at.flatMap((inner) => childrenOf(inner, key, value))
    value = (value as Record<PropertyKey, unknown> | null | undefined)?.[key]
  }
  return [...new Set(at.flatMap((inner) => objectsOf(inner, value)).flatMap(({ shape }) => Object.keys(shape!)))]
}

/** Every dotted path of a schema, for a key that stands in the wrong place. */
function allPaths(schema: Schema, prefix: string[] = []): string[][] {
  if (prefix.length > 4) return []
  return objectsOf(schema).flatMap(({ shape }) =>
    Object.entries(shape!).flatMap(([key, child]) => [[...prefix, key], ...allPaths(child, [...prefix, key])]),
  )
}

const dotted = (path: readonly PropertyKey[]) => path.map(String).join('.')

function unknownKey(schema: Schema, path: readonly PropertyKey[], key: string, input: unknown): string {
  const keys = knownKeys(schema, path, input)
  const where = path.length > 0 ? `${dotted(path)}.${key}` : key
  const meant = nearest(key, keys)
  if (meant !== undefined) return `${where}: unknown key; did you mean "${meant}"?`
  const elsewhere = allPaths(schema).find((candidate) => candidate.at(-1) === key)
  if (elsewhere) return `${where}: unknown key; it belongs at ${elsewhere.join('.')}`
  return `${where}: unknown key; known here: ${keys.join(', ')}`
}

function valueAt(input: unknown, path: readonly PropertyKey[]): unknown {
  let value = input
  for (const key of path) value = (value as Record<PropertyKey, unknown> | undefined)?.[key]
  return value
}

function notAmong(where: string, value: unknown, values: readonly unknown[]): string {
  const names = values.map(String)
  const meant = typeof value === 'string' ? nearest(value, names) : undefined
  const given = value === undefined ? 'is missing' : `${brief(value)} is not known`
  return `${where}: ${given}; ${meant === undefined ? `one of ${names.join(', ')}` : `did you mean "${meant}"?`}`
}

/** A union names its alternatives; where one of them took the value's kind, its own complaint says more. */
function fromUnion(schema: Schema, input: unknown, issue: Issue & { code: 'invalid_union' }): string[] {
  const value = valueAt(input, issue.path)
  const nested = issue.errors.flat().map((inner) => ({ ...inner, path: [...issue.path, ...inner.path] }) as Issue)
  if (typeof value === 'object' && value !== null) {
    const inside = nested.filter((inner) => inner.path.length > issue.path.length || inner.code === 'unrecognized_keys')
    if (inside.length > 0) return inside.flatMap((inner) => describe(schema, input, inner))
  }
  const values = nested.flatMap((inner) => (inner.code === 'invalid_value' ? inner.values : []))
  if (typeof value === 'string' && values.length > 0) return [notAmong(dotted(issue.path), value, values)]
  const kinds = [...new Set(nested.flatMap((inner) => ('expected' in inner ? [String(inner.expected)] : [])))]
  return [
    `${dotted(issue.path)}: ${value === undefined ? 'is missing' : `${brief(value)} does not fit`}; ${kinds.join(' or ') || 'see the documentation'} expected`,
  ]
}

function describe(schema: Schema, input: unknown, issue: Issue): string[] {
  const where = dotted(issue.path) || 'recipe'
  const value = valueAt(input, issue.path)
  switch (issue.code) {
    case 'unrecognized_keys':
      return issue.keys.map((key) => unknownKey(schema, issue.path, key, input))
    case 'invalid_value':
      return [notAmong(where, value, issue.values)]
    case 'invalid_union': {
      const discriminator = 'discriminator' in issue ? String(issue.discriminator) : undefined
      if (discriminator === undefined) return fromUnion(schema, input, issue)
      const names = optionsOf(schema, issue.path, discriminator)
      const at = [...issue.path, ...(issue.path.at(-1) === discriminator ? [] : [discriminator])]
      return [notAmong(dotted(at), valueAt(input, at), names)]
    }
    case 'invalid_type':
      return [
        value === undefined
          ? `${where}: is missing (${issue.expected} expected)`
          : `${where}: ${issue.expected} expected, not ${brief(value)}`,
      ]
    default:
      return [`${where}: ${issue.message}`]
  }
}

/** The names that a discriminated union knows. */
function optionsOf(schema: Schema, path: readonly PropertyKey[], discriminator: string): string[] {
  let at = [schema]
  for (const key of path.at(-1) === discriminator ? path.slice(0, -1) : path) {
    at = at.flatMap((inner) => childrenOf(inner, key))
  }
  return at
    .flatMap((inner) => objectsOf(inner))
    .flatMap(({ shape }) => (definitionOf(shape![discriminator]!) as unknown as { values?: string[] }).values ?? [])
}

/** One line per problem. */
export function describeIssues(schema: Schema, input: unknown, issues: readonly Issue[]): string[] {
  return [...new Set(issues.flatMap((issue) => describe(schema, input, issue)))]
}
