// The log of annotation: one JSON line per answer, appended and synced, never rewritten. Taking back is a line too. Each line
// holds the pair itself, so that the log can be read without the data it came from.
import { closeSync, constants, fsyncSync, ftruncateSync, mkdirSync, openSync, readFileSync, writeSync } from 'node:fs'
import { dirname } from 'node:path'
import { z } from 'zod'
import type { Comparison, Side } from '../../data/index.js'

/** What can be said of two answers. */
export const labels = ['first', 'second', 'tie', 'bothBad', 'skip'] as const
export type Label = (typeof labels)[number]

const sideSchema = z.union([
  z.string(),
  z.array(z.looseObject({ role: z.string() })).min(1),
]) as unknown as z.ZodType<Side>

const labelSchema = z.strictObject({
  type: z.literal('label'),
  id: z.string().min(1),
  prompt: sideSchema,
  tools: z.unknown().optional(),
  first: sideSchema,
  second: sideSchema,
  label: z.enum(labels),
  /** `human`, `judge:MODEL` or `rule:NAME`. */
  by: z.string().min(1),
  at: z.iso.datetime(),
  /** From the moment when the pair was shown. */
  seconds: z.number().nonnegative(),
})
const lineSchema = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('annotations'), version: z.literal(1), name: z.string(), base: z.string() }),
  labelSchema,
  /** Takes back the last answer that stands. */
  z.strictObject({ type: z.literal('undo'), id: z.string(), at: z.iso.datetime() }),
])

export type Annotation = z.output<typeof labelSchema>
type Line = z.output<typeof lineSchema>

/** How each line begins, as this file writes it. */
const lineStart = '{"type":"'

/** A log that cannot be used. */
export class AnnotationLogError extends Error {
  override name = 'AnnotationLogError'
}

function parseLine(text: string, place: string): Line {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw new AnnotationLogError(`${place}: is no JSON (${(error as Error).message}); mend or remove the line`)
  }
  const parsed = lineSchema.safeParse(value)
  if (parsed.success) return parsed.data
  const { path, message } = parsed.error.issues[0]!
  throw new AnnotationLogError(`${place}: ${path.length > 0 ? `${path.join('.')}: ` : ''}${message}; mend or remove it`)
}

/** The answers that stand, in order. @returns also the bytes of the whole lines */
function parseLog(content: Buffer, path: string): { standing: Annotation[]; wholeBytes: number } {
  const wholeBytes = content.lastIndexOf(10) + 1
  const lines = content.toString('utf8', 0, wholeBytes).split('\n').slice(0, -1)
  const standing: Annotation[] = []
  for (const [i, text] of lines.entries()) {
    const place = `${path}:${i + 1}`
    const line = parseLine(text, place)
    if ((line.type === 'annotations') !== (i === 0)) {
      throw new AnnotationLogError(
        `${place}: a log begins with one line of type annotations; this is none, or holds two`,
      )
    }
    if (line.type === 'label') standing.push(line)
    if (line.type === 'undo' && standing.pop()?.id !== line.id) {
      throw new AnnotationLogError(`${place}: takes back ${line.id}, which is not the last answer; remove the line`)
    }
  }
  return { standing, wholeBytes }
}

/** The answers of a log that stand, in order. @throws AnnotationLogError naming the line */
export function readAnnotations(path: string): Annotation[] {
  let content: Buffer
  try {
    content = readFileSync(path)
  } catch (error) {
    throw new AnnotationLogError(`${path}: cannot be read (${(error as Error).message})`)
  }
  return parseLog(content, path).standing
}

export class AnnotationLog {
  readonly path: string
  /** Bytes at the end of the file that a kill had left of a line; they were cut off. */
  readonly cutBytes: number
  readonly #file: number
  readonly #standing: Annotation[]
  #size: number

  /**
   * Opens a log to go on with, or begins one.
   * @throws AnnotationLogError where the file is something else, or a line of it is damaged
   */
  constructor(path: string, header: { name: string; base: string }) {
    this.path = path
    mkdirSync(dirname(path), { recursive: true })
    this.#file = openSync(path, constants.O_RDWR | constants.O_CREAT)
    try {
      const content = readFileSync(this.#file)
      const { standing, wholeBytes } = parseLog(content, path)
      this.#standing = standing
      this.#size = wholeBytes
      this.cutBytes = content.length - wholeBytes
      const torn = content.toString('utf8', wholeBytes, wholeBytes + lineStart.length)
      if (!lineStart.startsWith(torn)) {
        throw new AnnotationLogError(`${path}: ends with something that is no line of a log; name another file`)
      }
      if (this.cutBytes > 0) ftruncateSync(this.#file, wholeBytes)
      if (wholeBytes === 0) this.#write({ type: 'annotations', version: 1, ...header })
    } catch (error) {
      closeSync(this.#file)
      throw error
    }
  }

  /** The answers that stand, in order. */
  get standing(): readonly Annotation[] {
    return this.#standing
  }

  #write(line: Line): void {
    const bytes = Buffer.from(`${JSON.stringify(line)}\n`)
    try {
      for (let done = 0; done < bytes.length; )
        done += writeSync(this.#file, bytes, done, bytes.length - done, this.#size + done)
      fsyncSync(this.#file)
    } catch (error) {
      ftruncateSync(this.#file, this.#size) // a full disk leaves no half line behind
      throw new AnnotationLogError(`${this.path}: the answer could not be written (${(error as Error).message})`)
    }
    this.#size += bytes.length
  }

  /** Writes an answer; it is on disk when this returns. */
  append({ id, prompt, tools, first, second }: Comparison, label: Label, by: string, seconds: number): Annotation {
    const at = new Date().toISOString()
    const pair = { id, prompt, ...(tools === undefined ? {} : { tools }), first, second }
    const line: Annotation = { type: 'label', ...pair, label, by, at, seconds: Math.round(seconds * 1000) / 1000 }
    this.#write(line)
    this.#standing.push(line)
    return line
  }

  /** Takes back the last answer. @returns it, or undefined where there is none */
  undo(): Annotation | undefined {
    const last = this.#standing.at(-1)
    if (!last) return undefined
    this.#write({ type: 'undo', id: last.id, at: new Date().toISOString() })
    return this.#standing.pop()
  }

  close(): void {
    closeSync(this.#file)
  }
}
