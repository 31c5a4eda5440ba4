"""The radix-tree prefix cache of SGLang 0.5.23, exactly, over a pool of token slots."""

from engine.radix.cache import RadixCache as RadixCache
from engine.radix.content import Content as Content
from engine.radix.ranks import RANKS as RANKS
