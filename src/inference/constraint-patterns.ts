// Regular expressions, and lengths of JSON strings, in the form that the grammar compiler takes right. Two things it does not: classes
// that reach beyond ASCII in part (it takes their bytes apart), and `pattern` and lengths of JSON strings, which it applies
// to the text between the quotes without regard to what must be escaped there. So every atom that is concerned is written
// anew from the characters that it matches.

/** Characters that cannot stand in a JSON string as they are (RFC 8259, section 7). */
const escapedInJson = new Set([...Array.from({ length: 32 }, (_, code) => String.fromCharCode(code)), '"', '\\'])
const ASCII = 128
const LAST_CODE_POINT = 0x10ffff
const SURROGATES = [0xd800, 0xdfff] as const
const BEYOND_ASCII = LAST_CODE_POINT + 1 - ASCII - (SURROGATES[1] - SURROGATES[0] + 1)
/** A class may name so many characters beyond ASCII one by one. */
const MAX_NAMED = 512
/** `.` and `\S` lack some of these; they are let through with the rest. */
const blanks = new Set(
  '\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\ufeff',
)

const ANY_CHARACTER = '(?:[^\\x00-\\x1f"\\\\]|\\\\["\\\\/bfnrt])'

const escaped = (text: string) => text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
const hex = (code: number) => `\\x${code.toString(16).padStart(2, '0')}`

/** The ASCII characters of a set as a class. */
function asciiClass(characters: readonly string[]): string {
  const codes = characters.map((character) => character.charCodeAt(0))
  let ranges = ''
  for (let i = 0; i < codes.length; ) {
    let last = i
    while (codes[last + 1] === codes[last]! + 1) last++
    ranges += last === i ? hex(codes[i]!) : `${hex(codes[i]!)}-${hex(codes[last]!)}`
    i = last + 1
  }
  return `[${ranges}]`
}

/** The characters beyond ASCII that an atom matches, as alternatives. */
function beyondAscii(atom: string, expression: RegExp): string[] {
  const named: string[] = []
  const missing: string[] = []
  for (let code = ASCII; code <= LAST_CODE_POINT; code++) {
    if (code === SURROGATES[0]) code = SURROGATES[1] + 1
    const character = String.fromCodePoint(code)
    const list = expression.test(character) ? named : missing
    if (list.length <= MAX_NAMED) list.push(character)
  }
  if (named.length <= MAX_NAMED) return named
  if (missing.every((character) => blanks.has(character))) return ['[^\\x00-\\x7f]']
  throw new Error(
    `${atom} takes some of the ${BEYOND_ASCII} characters beyond ASCII: name at most ${MAX_NAMED} of them, all ([^\\x00-\\x7f]) or none`,
  )
}

const rewritten = { text: new Map<string, string>(), json: new Map<string, string>() }

/** What matches one character (an escape, a class, a dot) in a form that is compiled right. */
function rewriteAtom(atom: string, place: keyof typeof rewritten): string {
  const known = rewritten[place].get(atom)
  if (known !== undefined) return known
  const expression = new RegExp(`^${atom}$`, 'u')
  const ascii = Array.from({ length: ASCII }, (_, code) => String.fromCharCode(code)).filter((c) => expression.test(c))
  const mustEscape = place === 'json' ? ascii.filter((character) => escapedInJson.has(character)) : []
  const beyond = beyondAscii(atom, expression)
  let result = atom
  if (mustEscape.length > 0 || beyond.length > 0) {
    const plain = ascii.filter((character) => !mustEscape.includes(character))
    const written = mustEscape.map((c) => JSON.stringify(c).slice(1, -1)).filter((text) => text.length === 2)
    const parts = [...(plain.length > 0 ? [asciiClass(plain)] : []), ...beyond, ...written.map(escaped)]
    result = `(?:${parts.join('|')})`
  }
  rewritten[place].set(atom, result)
  return result
}

const atomExpression = /\[(?:\\.|[^\]\\])*\]|\\(?:u\{[^}]*\}|u.{4}|x..|[pP]\{[^}]*\}|.)|["./]/gsu

function rewrite(pattern: string, place: keyof typeof rewritten): string {
  return pattern.replace(atomExpression, (atom) => (/^\\[bB1-9k]/.test(atom) ? atom : rewriteAtom(atom, place)))
}

/** A pattern of a whole text. @throws where a class takes part of what is beyond ASCII */
export const patternInText = (pattern: string): string => rewrite(pattern, 'text')

/** A pattern over the value of a string → the pattern over its JSON text. */
export const patternInJson = (pattern: string): string => rewrite(pattern, 'json')

/** A pattern over the JSON text of strings of some length, in code points. */
export function lengthInJson(min: number, max: number | undefined): string {
  return `^${ANY_CHARACTER}{${min},${max ?? ''}}$`
}
