// API keys: only their hashes are kept, and every comparison takes the same time whichever key matches or none does.
import { createHash, timingSafeEqual } from 'node:crypto'
import { ApiError } from './errors.js'

const sha256 = (text: string) => createHash('sha256').update(text).digest()

/** Checks an `authorization` header; without keys everyone may come in. @throws ApiError 401 */
export type KeyCheck = (authorization: string | undefined) => void

export function createKeyCheck(keys: readonly string[]): KeyCheck {
  const hashes = keys.map(sha256)
  return (authorization) => {
    if (hashes.length === 0) return
    const given = /^Bearer +(.+)$/i.exec(authorization ?? '')?.[1]
    const hash = sha256(given ?? '')
    let matches = 0
    for (const known of hashes) matches |= Number(timingSafeEqual(hash, known))
    if (given !== undefined && matches) return
    throw new ApiError(
      401,
      given === undefined
        ? 'this server asks for an API key: send the header authorization: Bearer KEY'
        : 'the API key is not one of this server',
      { code: 'invalid_api_key', headers: { 'www-authenticate': 'Bearer' } },
    )
  }
}
