"""From logits to tokens: greedy, or drawn with noise that depends on seed and position alone.

A token is drawn by adding Gumbel noise to the logits and taking the largest sum: the same as
drawing from their softmax, but the noise can be a hash of (seed, position, token) rather than the
state of a generator. A request's text therefore does not depend on who else is in the batch.
"""

from typing import Final

import torch
from torch import Tensor

PIECE_LOGITS: Final = 2**23
"""Logits that are sampled from at a time: this bounds the temporary tensors to some 300 MB."""
LOW_31: Final = 0x7FFF_FFFF


def greedy(logits: Tensor) -> Tensor:
    """[n, vocab] -> [n] int64: the most likely tokens; of equal ones the first."""
    return logits.argmax(-1)


def sample(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    temperature: Tensor,
    top_p: Tensor | None = None,
) -> Tensor:
    """[n] int64: a token for each row; the most likely one where the temperature is 0.

    Arguments:
        logits: [n, vocab] fp32.
        seeds: [n] int64.
        positions: [n] integers: the place that the token will have in its sequence.
        temperature: [n] fp32: logits are divided by it.
        top_p: [n] fp32: only the most likely tokens whose probabilities, at this temperature, add
            up to it can be drawn; at least one. None: all tokens can.
    """
    rows = max(1, PIECE_LOGITS // logits.shape[1])
    drawn = [
        _draw(
            logits[piece],
            _key(seeds[piece], positions[piece]),
            temperature[piece].unsqueeze(1),
            None if top_p is None else top_p[piece].unsqueeze(1),
        )
        for piece in (slice(start, start + rows) for start in range(0, len(logits), rows))
    ]
    return torch.where(temperature > 0, torch.cat(drawn), greedy(logits))


def _draw(logits: Tensor, key: Tensor, temperature: Tensor, top_p: Tensor | None) -> Tensor:
    """[n]: drawn tokens; key [n, 2] int32, temperature and top_p [n, 1]."""
    # Less the largest first: a tiny temperature then sends the others to minus infinity, no NaN.
    scaled = logits - logits.amax(-1, keepdim=True)
    scaled /= torch.where(temperature > 0, temperature, 1.0)
    if top_p is None:
        tokens = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
        return scaled.sub_(_log_exponential(key, tokens)).argmax(-1)
    scaled, tokens = scaled.sort(dim=-1, descending=True, stable=True)
    up_to = scaled.softmax(-1).cumsum_(-1)
    outside = up_to[:, :-1] >= top_p  # what is more likely than the next one is enough
    scaled[:, 1:].masked_fill_(outside, -torch.inf)
    scaled -= _log_exponential(key, tokens.int())
    return tokens.gather(1, scaled.argmax(-1, keepdim=True)).squeeze(1)


def _log_exponential(key: Tensor, tokens: Tensor) -> Tensor:
    """[n, tokens] fp32: log of an exponential variate, which is minus a Gumbel variate."""
    bits = _mixed(_mixed(tokens ^ key[:, :1]) + key[:, 1:])
    # 31 bits below 1, closest together near 0, where the large noise comes from
    uniform = bits.bitwise_and_(LOW_31).float().add_(0.5).mul_(2.0**-31)
    return uniform.clamp_(max=1 - 2.0**-24).neg_().log1p_().neg_().log_()


def _key(seeds: Tensor, positions: Tensor) -> Tensor:
    """[n, 2] int32: 64 bits that differ for different seeds and positions."""
    low, high = _halves(seeds)
    low, high = _mixed(low), _mixed(high + 0x3C6E_F372)
    at = positions.int()
    first = _mixed(low ^ _mixed(high ^ at))
    second = _mixed(high + _mixed(first + at))
    return torch.stack((first, second), 1)


def _halves(seeds: Tensor) -> tuple[Tensor, Tensor]:
    """The two 32-bit halves of 64-bit integers."""
    halves = seeds.contiguous().view(torch.int32)
    return halves[0::2], halves[1::2]


def _mixed(x: Tensor) -> Tensor:
    """A 32-bit hash, each bit of which depends on all of x.

    lowbias32 (C. Wellons, nullprogram.com/blog/2018/07/31). Products wrap around, shifts to the
    right fill with zeros.
    """
    x = x ^ _shifted(x, 16)
    x *= 0x7FEB_352D
    x ^= _shifted(x, 15)
    x *= -0x7B93_5975  # 0x846CA68B
    return x.bitwise_xor_(_shifted(x, 16))


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)
