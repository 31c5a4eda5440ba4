"""The prefix cache as a scheduler calls it: slots of a pool, held by requests or by the tree.

A request makes these calls: `begin` (match, hold, make room for the prompt), perhaps `checkpoint`
(the prompt is computed: others may hit it) and `decode` (tokens of the answer), then `finish`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from engine.radix.content import Content, content_of
from engine.radix.node import Node
from engine.radix.ranks import RANKS, Rank, needs_unified
from engine.radix.tree import FLAVOURS, RadixTree
from traces.errors import ConfigError
from traces.request import Request


class Hold:
    """What one request under way has of the cache and the pool; lengths are in tokens."""

    __slots__ = (
        "allocated_tokens",
        "cached_tokens",
        "content",
        "evicted",
        "hit_tokens",
        "inserted_tokens",
        "node",
        "priority",
        "prompt_tokens",
        "tokens",
    )

    def __init__(self, content: Content, prompt_tokens: int, priority: int, node: Node) -> None:
        self.content: Content = content
        self.prompt_tokens: int = prompt_tokens
        self.priority: int = priority
        self.node: Node = node
        """Held, with all above it."""
        self.hit_tokens: int = node.end
        """Of the prompt, found in the cache."""
        self.cached_tokens: int = node.end
        """Its first tokens, which are the tree's: whole pages."""
        self.inserted_tokens: int = 0
        """Tokens it has inserted so far, new to the tree or not."""
        self.tokens: int = prompt_tokens
        """Tokens with KV."""
        self.allocated_tokens: int = node.end
        """Slots for `tokens`, those of the tree included: whole pages."""
        self.evicted: list[Node] = []
        """What left the cache for its latest allocation, in order."""


class RadixCache:
    """SGLang's prefix cache over a pool of `capacity_tokens` slots in pages.

    Every slot is free, a request's own, or the tree's, and there evictable or protected. There is
    no clock and no queue: requests overlap as their calls do.
    """

    __slots__ = (
        "_contents",
        "_hash_tokens",
        "_page_tokens",
        "available_tokens",
        "capacity_tokens",
        "evicted_nodes",
        "evicted_tokens",
        "rejected",
        "tree",
    )

    def __init__(
        self,
        capacity_tokens: int,
        page_tokens: int = 1,
        rank: Callable[[Node], Rank] = RANKS["lru"],
        flavour: str = "unified",
    ) -> None:
        """An empty cache.

        Args:
            capacity_tokens: slots of the pool; a page that it does not fill is not there.
            page_tokens: tokens of a page, the grain of matching and allocating.
            rank: which leaf is evicted first, see RANKS.
            flavour: `unified` or `radix`, see engine.radix.tree.

        Raises:
            ConfigError: no page fits, or a flavour that there is not or that lacks the rank.
        """
        if page_tokens < 1:
            raise ConfigError(f"page_tokens: must be at least 1, got {page_tokens}")
        if capacity_tokens < page_tokens:
            raise ConfigError(
                f"capacity_tokens: must hold a page of {page_tokens} tokens, got {capacity_tokens}"
            )
        if flavour not in FLAVOURS:
            raise ConfigError(f"flavour: must be one of {', '.join(FLAVOURS)}, got '{flavour}'")
        if flavour == "radix" and needs_unified(rank):
            raise ConfigError("flavour: rank tlru needs 'unified', got 'radix', as in SGLang")
        self.capacity_tokens: int = capacity_tokens - capacity_tokens % page_tokens
        self.available_tokens: int = self.capacity_tokens
        """Slots that are free."""
        self.evicted_nodes: int = 0
        """Nodes that ever left for want of room."""
        self.evicted_tokens: int = 0
        """Tokens that they held."""
        self.rejected: int = 0
        """Requests that did not fit even so."""
        self._page_tokens: int = page_tokens
        self.tree: Final[RadixTree] = RadixTree(page_tokens, rank, flavour)
        """What is cached; to be looked at, and changed through the cache only."""
        self._hash_tokens: int = 0
        self._contents: int = 0

    @property
    def evictable_tokens(self) -> int:
        """Slots of cached tokens that nobody holds."""
        return self.tree.evictable_tokens

    @property
    def protected_tokens(self) -> int:
        """Slots of cached tokens that a request under way holds."""
        return self.tree.protected_tokens

    def serve(self, request: Request, answers: bool = False) -> int:
        """Run a request of a trace through the cache, alone and in no time.

        Args:
            request: its priority is turned round: lower is served first, and kept longer here.
            answers: cache the answer too, all but its last token, which no step computes KV for.

        Returns:
            Tokens of the prompt that were hit; 0 for one that does not fit, counted in `rejected`.
        """
        hold = self.begin(content_of(request), request.prompt_tokens, -request.priority)
        if hold is None:
            return 0
        if answers and request.output_tokens > 1:
            self.checkpoint(hold)
            if not self.decode(hold, request.output_tokens - 1):
                self.abandon(hold)
                self.rejected += 1
                return 0
        self.finish(hold)
        return hold.hit_tokens

    def begin(self, content: Content, prompt_tokens: int, priority: int = 0) -> Hold | None:
        """Admit a request: hold what is cached of its prompt, make room for the rest.

        The last token of a prompt is never hit: a step must compute it to know the next. What is
        hit ends on a page.

        Args:
            content: of the prompt and of all that will be decoded.
            prompt_tokens: at least 1.
            priority: of what it caches; the greater, the longer `priority` keeps it.

        Returns:
            None if the prompt does not fit, though all that could go has gone.

        Raises:
            ConfigError: hashes of another size than those before.
        """
        self._know(content)
        tree = self.tree
        node = tree.match(content, self._whole_pages(prompt_tokens - 1))
        tree.lock(node)
        hold = Hold(content, prompt_tokens, priority, node)
        if not self._allocate(hold, prompt_tokens):
            tree.unlock(node)
            self.rejected += 1
            return None
        return hold

    def checkpoint(self, hold: Hold) -> int:
        """Cache what has KV, but for a last page that is not full, and hold that.

        Returns:
            Slots freed, because others had cached the same in the meantime.
        """
        freed, node = self._insert(hold)
        self.tree.lock(node)
        self.tree.unlock(hold.node)
        hold.node = node
        return freed

    def decode(self, hold: Hold, tokens: int) -> bool:
        """Give `tokens` more tokens of the answer their slots.

        Returns:
            False if they do not fit, though all that could go has gone; `hold` is as it was.
        """
        if not self._allocate(hold, hold.tokens + tokens):
            return False
        hold.tokens += tokens
        return True

    def finish(self, hold: Hold) -> int:
        """Cache what has KV and let go of everything; `hold` is over.

        Returns:
            Slots freed: what others had cached as well, and the last page if it is not full.
        """
        freed, _ = self._insert(hold)
        return freed + self.abandon(hold)

    def abandon(self, hold: Hold) -> int:
        """Let go of everything and cache nothing; `hold` is over. Returns the slots freed."""
        freed = hold.allocated_tokens - hold.cached_tokens
        self.available_tokens += freed
        self.tree.unlock(hold.node)
        return freed

    def evict_for_alloc(self, tokens: int) -> list[Node]:
        """Evict whole leaves, least rank first, until `tokens` more are free or none is left.

        Returns:
            What left, in order.
        """
        gone = self.tree.evict(tokens)
        freed = sum(node.end - node.start for node in gone)
        self.available_tokens += freed
        self.evicted_tokens += freed
        self.evicted_nodes += len(gone)
        return gone

    def _insert(self, hold: Hold) -> tuple[int, Node]:
        """Cache what has KV of `hold`: the slots freed, the node that it ends on."""
        tree, content = self.tree, hold.content
        end = self._whole_pages(hold.tokens)
        cached, node = tree.insert(content, end, hold.priority, hold.inserted_tokens)
        hold.inserted_tokens = end
        prompt = self._whole_pages(hold.prompt_tokens)
        if 0 < prompt < end:
            # The answer can go before its prompt, which is worth more.
            tree.insert(content, prompt, hold.priority + 1, prompt)
        freed = cached - hold.cached_tokens
        self.available_tokens += freed
        hold.cached_tokens = end
        return freed, node

    def _allocate(self, hold: Hold, tokens: int) -> bool:
        """Slots for the first `tokens` of `hold`, evicting what they lack; False: no room."""
        pages = -(-tokens // self._page_tokens) * self._page_tokens
        need = pages - hold.allocated_tokens
        short = need - self.available_tokens
        hold.evicted = self.evict_for_alloc(short) if short > 0 else []
        if need > self.available_tokens:
            return False
        self.available_tokens -= need
        hold.allocated_tokens = pages
        return True

    def _whole_pages(self, tokens: int) -> int:
        return tokens - tokens % self._page_tokens

    def _know(self, content: Content) -> None:
        """Number a content not met before; all must be hashed alike."""
        if content.hashes:
            if self._hash_tokens == 0:
                self._hash_tokens = content.hash_tokens
            elif content.hash_tokens != self._hash_tokens:
                raise ConfigError(
                    f"hash_tokens: {content.hash_tokens} after {self._hash_tokens}; "
                    "one cache needs one size"
                )
        if content.own == 0:
            self._contents += 1
            content.own = -self._contents
