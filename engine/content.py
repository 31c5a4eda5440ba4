"""Content of KV blocks as chained hashes of their tokens, as the prefix cache knows them."""

from array import array
from collections.abc import Sequence as Listed
from hashlib import blake2b


def block_hash(parent: int, tokens: Listed[int]) -> int:
    """Hash of a full block that follows the block of hash `parent` (0: begins the sequence).

    63 bits of BLAKE2b over the parent's hash and the tokens as 32-bit numbers: the same in every
    process and on every machine of one byte order.
    """
    content = blake2b(array("I", tokens).tobytes(), digest_size=8, key=parent.to_bytes(8, "little"))
    return int.from_bytes(content.digest(), "little") >> 1


def chained_hashes(tokens: Listed[int], block_tokens: int) -> tuple[int, ...]:
    """Hashes of the full blocks of `tokens`, each standing for everything before it too."""
    hashes: list[int] = []
    parent = 0
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        parent = block_hash(parent, tokens[start : start + block_tokens])
        hashes.append(parent)
    return tuple(hashes)
