// A JSON schema in the form that the grammar compiler keeps to: what it would read otherwise is written anew, what it would pass
// over in silence is refused.
import { lengthInJson, patternInJson } from './constraint-patterns.js'

/** Keywords that no grammar of this compiler holds to. */
const refused = new Set([
  'multipleOf',
  'uniqueItems',
  'contains',
  'minContains',
  'maxContains',
  'dependentRequired',
  'dependentSchemas',
  'not',
  'if',
  'then',
  'else',
])
const literals = new Set(['const', 'enum', 'default', 'examples', 'required', 'type', '$ref', '$schema', '$id'])
/** Keywords whose values are schemas by name. */
const byName = new Set(['properties', 'patternProperties', '$defs', 'definitions'])

/** The least distance from an exclusive limit of a number that is no integer. */
const STEP = 1e-6

type Schema = Record<string, unknown>

/** Exclusive limits as inclusive ones: the compiler takes the two for the same. */
function withInclusiveLimits(schema: Schema): void {
  const step = schema.type === 'integer' ? 1 : STEP
  const { exclusiveMinimum: above, exclusiveMaximum: below, minimum, maximum } = schema
  if (typeof above === 'number') {
    const least = step === 1 ? Math.floor(above) + 1 : above + STEP
    schema.minimum = typeof minimum === 'number' ? Math.max(minimum, least) : least
    delete schema.exclusiveMinimum
  }
  if (typeof below === 'number') {
    const most = step === 1 ? Math.ceil(below) - 1 : below - STEP
    schema.maximum = typeof maximum === 'number' ? Math.min(maximum, most) : most
    delete schema.exclusiveMaximum
  }
}

/** `pattern`, `minLength` and `maxLength` as a pattern of the string's JSON text. */
function withJsonText(schema: Schema): void {
  const { pattern, minLength, maxLength } = schema
  if (typeof pattern === 'string') schema.pattern = patternInJson(pattern)
  else if (typeof minLength === 'number' || typeof maxLength === 'number') {
    schema.pattern = lengthInJson(Number(minLength ?? 0), maxLength as number | undefined)
    delete schema.minLength
    delete schema.maxLength
  }
}

/**
 * The schema for the compiler.
 * @throws naming the place of what cannot be kept to
 */
export function schemaForGrammar(given: unknown, place = ''): unknown {
  if (Array.isArray(given)) return given.map((item, i) => schemaForGrammar(item, `${place}/${i}`))
  if (typeof given !== 'object' || given === null) return given
  const schema: Schema = {}
  for (const [key, value] of Object.entries(given)) {
    const here = `${place}/${key}`
    const isPart = !(key === 'uniqueItems' && value === false)
    if ((refused.has(key) && isPart) || (key === 'allOf' && Array.isArray(value) && value.length > 1))
      throw new Error(
        `${here.slice(1)} is not something that decoding can be held to: leave it out and check it afterwards`,
      )
    if (literals.has(key)) schema[key] = value
    else if (byName.has(key) && typeof value === 'object' && value !== null)
      schema[key] = Object.fromEntries(
        Object.entries(value).map(([name, part]) => [name, schemaForGrammar(part, `${here}/${name}`)]),
      )
    else schema[key] = schemaForGrammar(value, here)
  }
  withInclusiveLimits(schema)
  withJsonText(schema)
  // An object of which nothing is said may hold anything; the compiler sees that only where it is alone.
  const isOpen =
    schema.type === 'object' &&
    [
      'properties',
      'patternProperties',
      'propertyNames',
      'additionalProperties',
      '$ref',
      'anyOf',
      'oneOf',
      'allOf',
    ].every((key) => !(key in schema))
  if (isOpen) schema.additionalProperties = true
  return schema
}
