"""Policies of a user's own, in files, for tests."""

from pathlib import Path
from textwrap import dedent


def own(folder: Path, source: str, name: str = "Mine") -> str:
    """Writes mine.py; returns the spec of what it calls `name`."""
    file = folder / "mine.py"
    file.write_text(dedent(source))
    return f"{file}:{name}"


SHORTEST_PROMPT = """
    def Mine(seq):
        return (seq.prompt_tokens + seq.generated, seq.arrival)
"""

LRU = """
    class Mine:
        def __init__(self, view):
            self.pieces = {}

        def push(self, piece):
            self.pieces[piece] = None

        def remove(self, piece):
            del self.pieces[piece]

        def replace(self, piece, tail):
            self.pieces = {tail if one is piece else one: None for one in self.pieces}

        def victim(self):
            return next(iter(self.pieces))

        def evicted(self, piece, blocks):
            if piece.end == piece.start:
                del self.pieces[piece]
"""

QUEUE = """
    class Mine:
        def __init__(self, view):
            self.waiting = []

        def add(self, seq, again):
            self.waiting.insert(0 if again else len(self.waiting), seq)

        def first(self):
            return self.waiting[0]

        def remove(self, seq):
            self.waiting.remove(seq)
"""
