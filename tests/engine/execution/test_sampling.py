"""Tokens are drawn from the distribution asked for, by noise that a seed and a position decide."""

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from engine.execution import sampling
from engine.execution.sampling import greedy, sample

DRAWS = 40_000


def batch(count: int, **values) -> dict[str, torch.Tensor]:
    """Arguments of `sample` for so many rows; lists are repeated."""
    defaults = {"seeds": 0, "positions": 0, "temperature": 1.0}
    dtypes = {"seeds": torch.int64, "positions": torch.int32}
    made = {}
    for name, value in (defaults | values).items():
        tensor = torch.as_tensor(value, dtype=dtypes.get(name, torch.float32))
        made[name] = tensor.expand(count) if tensor.dim() == 0 else tensor
    return made


def probability_of_fit(drawn: torch.Tensor, expected: torch.Tensor) -> float:
    """p-value of the chi-square test, tokens that are hardly drawn taken together; no token may be
    drawn that cannot be."""
    seen = torch.bincount(drawn, minlength=len(expected)).double()
    assert not seen[expected == 0].any()
    wanted = expected.double() / expected.sum() * len(drawn)
    often = wanted >= 5
    seen = torch.cat((seen[often], seen[~often].sum(0, keepdim=True)))
    wanted = torch.cat((wanted[often], wanted[~often].sum(0, keepdim=True)))
    if wanted[-1] == 0:
        seen, wanted = seen[:-1], wanted[:-1]
    if len(wanted) == 1:
        return 1.0
    return stats.chisquare(seen.numpy(), wanted.numpy())[1]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("vary", ["seeds", "positions"])
def test_draws_follow_the_softmax(temperature, vary):
    """Over seeds that follow each other, and over positions: the worst hash would do for random."""
    logits = torch.tensor([2.0, -1.0, 0.5, 1.9, -4.0, 0.0, 1.0, -0.5, 3.0])
    asked = batch(DRAWS, temperature=temperature, **{vary: torch.arange(DRAWS)})
    drawn = sample(logits.expand(DRAWS, -1), **asked)
    assert probability_of_fit(drawn, (logits.double() / temperature).softmax(-1)) > 1e-4


def test_rare_tokens_of_a_large_vocabulary_are_as_rare_as_they_should_be():
    """One likely token and 50,000 that share 2 %: the noise's far tail decides."""
    vocab, rows = 50_001, 4000
    logits = torch.zeros(vocab)
    logits[0] = torch.tensor(0.98 / 0.02 * (vocab - 1)).log()
    drawn = sample(logits.expand(rows, -1), **batch(rows, seeds=torch.arange(rows)))
    rare = int((drawn != 0).sum())
    assert stats.binomtest(rare, rows, 0.02).pvalue > 1e-4
    spread = torch.bincount((drawn[drawn != 0] - 1) * 4 // (vocab - 1), minlength=4)
    assert stats.chisquare(spread.numpy())[1] > 1e-4


def test_draws_of_neighbouring_positions_and_seeds_are_independent():
    logits = torch.zeros(4).expand(DRAWS, -1)
    numbers = torch.arange(DRAWS)
    base = sample(logits, **batch(DRAWS, positions=numbers))
    for other in (
        sample(logits, **batch(DRAWS, positions=numbers + 1)),
        sample(logits, **batch(DRAWS, positions=numbers, seeds=1)),
        sample(logits, **batch(DRAWS, positions=numbers, seeds=1 << 32)),
        sample(logits, **batch(DRAWS, positions=0, seeds=numbers)),
    ):
        together = torch.bincount(base * 4 + other, minlength=16)
        assert stats.chisquare(together.numpy())[1] > 1e-4


def test_no_two_places_share_their_noise():
    """Among so many, keys of 32 bits would meet 30 times."""
    numbers = torch.arange(2**18)
    keys = [
        sampling._key(torch.zeros_like(numbers), numbers),
        sampling._key(numbers + 1, torch.zeros_like(numbers)),
    ]
    assert len(torch.cat(keys).unique(dim=0)) == 2**19


@given(st.integers(0, 2**31), st.sampled_from([0.4, 1.0, 3.0]), st.floats(0.01, 0.999))
@settings(max_examples=30, deadline=None)
def test_top_p_draws_from_the_smallest_set_that_suffices(seed, temperature, top_p):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(12, generator=generator)
    chances = (logits.double() / temperature).softmax(-1)
    ordered, order = chances.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    size = int((before < top_p).sum())
    if (before - top_p).abs().min() < 1e-6:
        return  # too close to say in fp32
    allowed = torch.zeros(12, dtype=torch.float64)
    allowed[order[:size]] = ordered[:size]
    count = 3000
    drawn = sample(
        logits.expand(count, -1),
        **batch(count, seeds=torch.arange(count) + seed, temperature=temperature, top_p=top_p),
    )
    assert probability_of_fit(drawn, allowed) > 1e-6


def test_top_p_draws_every_token_of_its_set():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).log()
    for top_p, size in ((0.01, 1), (0.4, 1), (0.6, 2), (0.8, 3), (0.9, 4), (1.0, 5)):
        drawn = sample(
            logits.expand(2000, -1), **batch(2000, seeds=torch.arange(2000), top_p=top_p)
        )
        assert set(drawn.tolist()) == set(range(size))


def test_equally_likely_tokens_are_cut_at_the_first_ones():
    drawn = sample(torch.zeros(500, 10), **batch(500, seeds=torch.arange(500), top_p=0.25))
    assert set(drawn.tolist()) == {0, 1, 2}


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_a_row_s_token_does_not_depend_on_the_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, vocab = 9, 50
    logits = 2 * torch.randn(rows, vocab, generator=generator)
    asked = {
        "seeds": torch.randint(0, 2**62, (rows,), generator=generator),
        "positions": torch.randint(0, 5000, (rows,), generator=generator, dtype=torch.int32),
        "temperature": torch.rand(rows, generator=generator) * 2,
        "top_p": torch.rand(rows, generator=generator).clamp(min=0.05),
    }
    together = sample(logits, **asked)
    order = torch.randperm(rows, generator=generator)
    assert sample(logits[order], **{k: v[order] for k, v in asked.items()}).equal(together[order])
    for row in range(rows):
        alone = {name: value[row : row + 1] for name, value in asked.items()}
        assert sample(logits[row : row + 1], **alone).item() == together[row]


def test_top_p_of_1_is_as_none(monkeypatch):
    logits = torch.randn(64, 30)
    asked = batch(64, seeds=torch.arange(64))
    assert sample(logits, **asked).equal(sample(logits, **asked, top_p=torch.ones(64)))


def test_large_batches_go_in_pieces_without_a_difference(monkeypatch):
    logits, asked = torch.randn(33, 30), batch(33, seeds=torch.arange(33), top_p=0.8)
    whole = sample(logits, **asked)
    monkeypatch.setattr(sampling, "PIECE_LOGITS", 120)
    assert sample(logits, **asked).equal(whole)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e30])
def test_greedy_rows_stay_exact_beside_sampled_ones(scale):
    logits = scale * torch.randn(50, 40)
    logits[:, 7] = logits.amax(-1)  # a tie, more often than not
    temperature = torch.arange(50) % 2 * 1.5
    for top_p in (None, torch.full((50,), 0.5)):
        drawn = sample(logits, **batch(50, temperature=temperature), top_p=top_p)
        assert drawn[::2].equal(greedy(logits)[::2])
        assert (drawn >= 0).all() and (drawn < 40).all()


@pytest.mark.parametrize("temperature", [1e-30, 1e-6])
def test_hardly_any_temperature_is_greedy(temperature):
    logits = 5 * torch.randn(100, 40)
    for top_p in (None, torch.full((100,), 0.99)):
        drawn = sample(
            logits, **batch(100, seeds=torch.arange(100), temperature=temperature), top_p=top_p
        )
        assert drawn.equal(greedy(logits))
