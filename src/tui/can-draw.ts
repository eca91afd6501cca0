// Whether a screen is drawn or lines are written.

/** As Ink asks. */
const isSet = (name: string) => ![undefined, '0', 'false'].includes(process.env[name])

/**
 * Whether Ink draws on this stream: a terminal that can move its cursor, and no CI. Where CI is set Ink draws nothing
 * before the end, terminal or not.
 */
export const canDraw = (stream: NodeJS.WriteStream): boolean =>
  Boolean(stream.isTTY) && process.env.TERM !== 'dumb' && !isSet('CI') && !isSet('CONTINUOUS_INTEGRATION')
