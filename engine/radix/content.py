"""What a radix tree compares: the tokens of a sequence, known by chained hashes."""

from __future__ import annotations

from traces.request import Request


class Content:
    """The tokens of one sequence, prompt and answer, as far as they will go.

    `hashes` are chained as in `traces.request.Request`: two contents with the same hash at the same
    position agree on every token up to that hash's end (for a partial hash, up to the shorter of
    the two). Tokens past `hashed_tokens` are like those of this very object only.
    """

    __slots__ = ("first", "hash_tokens", "hashed_tokens", "hashes", "own")

    def __init__(
        self, hashes: tuple[int, ...] = (), hash_tokens: int = 0, hashed_tokens: int = 0
    ) -> None:
        """Content that `hashes` describe.

        Args:
            hashes: ceil(hashed_tokens / hash_tokens) integers >= 0.
            hash_tokens: tokens a hash stands for; 0 without hashes.
            hashed_tokens: tokens the hashes cover, the last one perhaps partly.
        """
        self.hashes: tuple[int, ...] = hashes
        self.hash_tokens: int = hash_tokens
        self.hashed_tokens: int = hashed_tokens
        self.first: int = 0
        """Position of `hashes[0]` among all hashes of the sequence."""
        self.own: int = 0
        """Stands for the tokens past the hashed, below 0; a cache numbers the contents it meets."""

    def key(self, end: int) -> int:
        """What stands for tokens [0, end): equal keys at an equal `end`, equal tokens."""
        if end <= self.hashed_tokens:
            return self.hashes[(end - 1) // self.hash_tokens - self.first]
        return self.own

    def common(self, other: Content, low: int, high: int) -> int:
        """Tokens up to which both agree, at most `high`; they agree on [0, low), 0 < low <= high.

        Both describe tokens [low - 1, high). Takes O(log(high - low)) comparisons.
        """
        if self.key(high) == other.key(high):
            return high
        # They part where both are hashed: what is their own would be the same to the end.
        hash_tokens = self.hash_tokens
        high = min(high, self.hashed_tokens, other.hashed_tokens)
        ours, theirs = self.hashes, other.hashes
        our_first, their_first = self.first, other.first
        agreed = (low - 1) // hash_tokens
        last = (high - 1) // hash_tokens
        if ours[last - our_first] == theirs[last - their_first]:
            return high
        while last - agreed > 1:
            middle = (agreed + last) // 2
            if ours[middle - our_first] == theirs[middle - their_first]:
                agreed = middle
            else:
                last = middle
        return last * hash_tokens

    def hashes_of(self, start: int, end: int) -> tuple[int, ...]:
        """The hashes that cover tokens [start, end), as far as they are hashed."""
        end = min(end, self.hashed_tokens)
        if start >= end:
            return ()
        hash_tokens, first = self.hash_tokens, self.first
        return self.hashes[start // hash_tokens - first : (end - 1) // hash_tokens + 1 - first]


def content_of(request: Request) -> Content:
    """The content of a request of a trace."""
    return Content(request.hashes, request.hash_tokens, request.hashed_tokens)
