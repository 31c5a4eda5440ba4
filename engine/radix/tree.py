"""The radix tree: which tokens are cached, held and evictable; a leaf leaves as a whole.

As SGLang 0.5.23 has it, in both flavours, which differ in creation times after a split:

- `radix` (its RadixCache): the upper part is new, the lower keeps its time;
- `unified` (its UnifiedRadixCache, which the server uses): both keep it.

Contents are compared by binary search over their chained hashes, never token by token. SGLang
ranks every leaf at each eviction; here one heap lives on, and only the leaves that changed since
are ranked anew, which gives the same order as long as a rank depends on its node alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final

from engine.radix.content import Content
from engine.radix.node import Node
from engine.radix.ranks import Rank

FLAVOURS: Final = ("radix", "unified")

_SPARE_ENTRIES: Final = 64
"""Stale entries that are not worth clearing away."""


class RadixTree:
    """Cached tokens as a tree of runs of pages; lengths are in tokens."""

    __slots__ = (
        "_changed",
        "_clock",
        "_entries",
        "_heap",
        "_kept",
        "_page_tokens",
        "_rank",
        "_split_keeps_time",
        "evictable_tokens",
        "protected_tokens",
        "root",
    )

    def __init__(self, page_tokens: int, rank: Callable[[Node], Rank], flavour: str) -> None:
        """An empty tree.

        Args:
            page_tokens: tokens of a page, at least 1.
            rank: least is evicted first; reads its node only.
            flavour: one of FLAVOURS.
        """
        self._page_tokens: Final[int] = page_tokens
        self._rank: Final[Callable[[Node], Rank]] = rank
        self._split_keeps_time: Final[bool] = flavour == "unified"
        self._clock: int = 0
        self._heap: list[tuple[Rank, int, int, Node]] = []
        """(rank, last access, number, leaf): valid while the number is the leaf's `entry`."""
        self._entries: int = 0
        """Entries ever made."""
        self._kept: int = 0
        """Entries left when the stale ones were last cleared away."""
        self._changed: dict[Node, None] = {}
        """What must be ranked before the next eviction, should it be evictable then."""
        self.root: Final[Node] = Node(None, Content(), 0, 0)
        self.root.locks = 1
        self.evictable_tokens: int = 0
        """Tokens that no request holds."""
        self.protected_tokens: int = 0
        """Tokens that a request holds."""

    def match(self, content: Content, limit: int) -> Node:
        """The node that the longest cached prefix of at most `limit` tokens (whole pages) ends on.

        The prefix is touched; a node that it ends within is split.
        """
        path = self._walk(content, limit)
        return path[-1] if path else self.root

    def insert(
        self, content: Content, end: int, priority: int, counted: int = 0
    ) -> tuple[int, Node]:
        """Cache the first `end` tokens (whole pages) of `content`.

        Args:
            content: of the request.
            end: tokens to be in the tree.
            priority: raises that of every node on the way.
            counted: tokens that this request inserted before: nodes up to there counted it then.

        Returns:
            Tokens that were in the tree already, and the node that ends at `end`.
        """
        path = self._walk(content, end)
        for node in path:
            node.priority = max(node.priority, priority)
            if node.end > counted:
                node.hits += 1
        last = path[-1] if path else self.root
        cached = last.end
        if cached < end:
            last = self._grow(last, content, end)
            last.priority = priority
            last.hits = 1
        return cached, last

    def lock(self, node: Node) -> None:
        """Hold `node` and all above it: not to be evicted, though a part may be split off."""
        while node.parent is not None:
            if node.locks == 0:
                self.evictable_tokens -= node.end - node.start
                self.protected_tokens += node.end - node.start
            node.locks += 1
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Undo one `lock` of `node`."""
        while node.parent is not None:
            node.locks -= 1
            if node.locks == 0:
                self.evictable_tokens += node.end - node.start
                self.protected_tokens -= node.end - node.start
                if not node.children:
                    self._changed[node] = None
            node = node.parent

    def evict(self, tokens: int) -> list[Node]:
        """Take out unheld leaves, least rank first, until `tokens` are free or none is left.

        A parent that loses its last child joins the others at its own rank. As leaves go whole,
        more may be freed than was asked for.

        Returns:
            The nodes taken out, in order.
        """
        self._rank_changed()
        heap = self._heap
        gone: list[Node] = []
        freed = 0
        while freed < tokens and heap:
            _, _, entry, leaf = heappop(heap)
            if entry != leaf.entry or leaf.locks or leaf.children:
                continue
            parent = leaf.parent
            assert parent is not None
            del parent.children[leaf.key(leaf.start + self._page_tokens)]
            leaf.parent = None
            gone.append(leaf)
            freed += leaf.end - leaf.start
            if not (parent.locks or parent.children):
                self._enter(parent)
        self.evictable_tokens -= freed
        return gone

    def nodes(self) -> Iterator[Node]:
        """Every node but the root, parents before children."""
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())

    def _walk(self, content: Content, limit: int) -> list[Node]:
        """The nodes that make up the longest cached prefix of at most `limit` tokens, touched.

        A node that reaches further is split; its lower part is touched as well, but not returned.
        """
        self._clock += 1
        now = self._clock
        page = self._page_tokens
        path: list[Node] = []
        node = self.root
        while node.end < limit:
            first_page = node.end + page
            child = node.children.get(content.key(first_page))
            if child is None:
                break
            child.accessed = now
            if not (child.locks or child.children):
                self._changed[child] = None
            at = child.common(content, first_page, min(child.end, limit))
            at -= at % page
            node = child if at == child.end else self._split(child, at)
            path.append(node)
            if node is not child:
                break
        return path

    def _split(self, lower: Node, at: int) -> Node:
        """Cut `lower` at `at`: it keeps its end, and whoever holds it; returns the upper part."""
        parent = lower.parent
        assert parent is not None
        page = self._page_tokens
        upper = Node(parent, lower, lower.start, at)
        parent.children[lower.key(lower.start + page)] = upper
        upper.children[lower.key(at + page)] = lower
        upper.hits = lower.hits
        upper.priority = lower.priority
        upper.locks = lower.locks
        upper.accessed = lower.accessed
        upper.created = lower.created if self._split_keeps_time else self._clock
        upper.history = lower.history
        lower.keep(at)
        lower.parent = upper
        return upper

    def _grow(self, parent: Node, content: Content, end: int) -> Node:
        """A new leaf below `parent`, which `content` runs through, up to `end`."""
        self._clock += 1
        leaf = Node(parent, content, parent.end, end)
        leaf.accessed = leaf.created = self._clock
        parent.children[content.key(parent.end + self._page_tokens)] = leaf
        above: Node | None = leaf
        while above is not None and above.history < end:
            above.history = end
            above = above.parent
        self.evictable_tokens += end - leaf.start
        self._changed[leaf] = None
        return leaf

    def _rank_changed(self) -> None:
        """Give every evictable leaf its place in the heap."""
        for node in self._changed:
            if not (node.locks or node.children):
                self._enter(node)
        self._changed.clear()
        if len(self._heap) > 2 * self._kept + _SPARE_ENTRIES:
            self._heap = [
                entry
                for entry in self._heap
                if entry[2] == entry[3].entry and not (entry[3].locks or entry[3].children)
            ]
            heapify(self._heap)
            self._kept = len(self._heap)

    def _enter(self, leaf: Node) -> None:
        """Rank `leaf` as it is now; an earlier entry is void."""
        self._entries += 1
        leaf.entry = self._entries
        heappush(self._heap, (self._rank(leaf), leaf.accessed, leaf.entry, leaf))
