"""What an importer of operator tables hands over, and what tables leave to the data sheet."""

from dataclasses import dataclass

from calibration.hardware import Gpu
from calibration.kernels import Efficiencies, all_reduce_s
from calibration.operators import Curve, OperatorTables
from engine.shapes import ModelShape


@dataclass(frozen=True)
class Bundle:
    """A model's operators on a device, composed, with where they are from and how far they go."""

    source: str
    model: str
    gpu: str
    tp: int
    weight_dtype: str
    kv_dtype: str
    tables: OperatorTables
    max_tokens: int
    """Largest step measured."""
    max_sequences: int
    max_context_tokens: int
    """Longest context of one decode measured."""
    notes: tuple[str, ...] = ()
    """What of it is assumed rather than measured, a sentence each."""


def all_reduce_curve(shape: ModelShape, tp: int, gpu: Gpu, sizes: tuple[int, ...]) -> Curve:
    """All-reduces of a step (two a layer, of 16-bit activations) by tokens, from the data sheet."""
    share = Efficiencies().interconnect
    return Curve(
        sizes,
        tuple(
            2 * shape.layers * all_reduce_s(2 * tokens * shape.hidden, tp, gpu, share)
            for tokens in sizes
        ),
    )
