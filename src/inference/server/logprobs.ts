// Log-probabilities of tokens, as chat completions and as completions show them.
import type { Tokenizer } from '../../data/index.js'
import type { GeneratedToken, TokenChoice } from '../request.js'

const entry = (tokenizer: Tokenizer, { id, logp }: TokenChoice) => ({
  token: tokenizer.tokenText(id),
  logprob: logp,
  bytes: [...tokenizer.tokenBytes(id)],
})

export function chatLogprobs(tokenizer: Tokenizer, tokens: readonly GeneratedToken[]) {
  const content = tokens.map((token) => ({
    ...entry(tokenizer, token),
    top_logprobs: (token.top ?? []).map((choice) => entry(tokenizer, choice)),
  }))
  return { content, refusal: null }
}

/** Goes along one text; `text_offset` counts UTF-16 units of the answer. */
export function createCompletionLogprobs(tokenizer: Tokenizer) {
  const decoding = tokenizer.createDecodeStream()
  let offset = 0
  return (tokens: readonly GeneratedToken[]) => {
    const offsets = tokens.map(({ id }) => {
      const at = offset
      offset += decoding.push(id).length
      return at
    })
    return {
      tokens: tokens.map(({ id }) => tokenizer.tokenText(id)),
      token_logprobs: tokens.map(({ logp }) => logp),
      top_logprobs: tokens.map(({ top }) =>
        Object.fromEntries((top ?? []).map(({ id, logp }) => [tokenizer.tokenText(id), logp])),
      ),
      text_offset: offsets,
    }
  }
}
