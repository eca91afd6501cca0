// The error of every reader of foreign files: which file, where in it, what is wrong.

/** A file that does not follow its format. Thrown instead of reading out of bounds, hanging or guessing. */
export class FormatError extends Error {
  readonly file: string
  readonly place: string

  constructor(file: string, place: string, problem: string) {
    super(`${file}: ${place}: ${problem}`)
    this.name = 'FormatError'
    this.file = file
    this.place = place
  }
}
