"""A node of the radix tree."""

from __future__ import annotations

from engine.radix.content import Content


class Node(Content):
    """Tokens [start, end) of every sequence that runs through it: whole pages.

    It has the hashes of its own tokens only, so that a small node does not keep those of a long
    prompt alive. Times are counts of the tree's walks and new leaves.
    """

    __slots__ = (
        "accessed",
        "children",
        "created",
        "end",
        "entry",
        "history",
        "hits",
        "locks",
        "parent",
        "priority",
        "start",
    )

    def __init__(self, parent: Node | None, content: Content, start: int, end: int) -> None:
        """Tokens [start, end) of `content`; `parent` ends at `start` and is None for the root."""
        super().__init__(content.hashes_of(start, end), content.hash_tokens, content.hashed_tokens)
        self.own = content.own
        self.first = start // content.hash_tokens if self.hashes else 0
        self.parent: Node | None = parent
        self.start: int = start
        self.end: int = end
        self.children: dict[int, Node] = {}
        """By the key of their first page's end (see Content.key)."""
        self.hits: int = 0
        """Requests whose insert ran through it, the one that created it included."""
        self.priority: int = 0
        """The greatest of those requests; the greater, the more it is worth keeping."""
        self.locks: int = 0
        """Requests that hold it or something below it."""
        self.accessed: int = 0
        """When a walk last passed."""
        self.created: int = 0
        """When it was inserted or, depending on the flavour, split off."""
        self.history: int = 0
        """The deepest this branch ever reached, in tokens; stays when its tail is evicted."""
        self.entry: int = 0
        """Number of its one valid entry in the order of eviction; 0: none."""

    @property
    def tokens(self) -> int:
        """Tokens it holds."""
        return self.end - self.start

    def keep(self, start: int) -> None:
        """Give up the tokens before `start`, which now are a parent's."""
        self.hashes = self.hashes_of(start, self.end)
        self.first = start // self.hash_tokens if self.hashes else 0
        self.start = start

    def __repr__(self) -> str:
        return f"Node({self.start}, {self.end}, locks={self.locks})"
