"""How many engine steps lay between the tokens of a request log.

A log says when each request got its first and its last token. Between two such moments, of
whichever requests, the same requests decode, and each of them gets one token a step. So the tokens
of all requests together say how many steps lay between any two moments:

    for each request: sum of steps over the intervals of its decode = output tokens - 1

There are about twice as many intervals as requests, so something has to be expected of each; the
solution taken is one near to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from calibration.imports.requests import ServedRun

LEAST_TOKENS: Final = 6
"""Answers shorter than this say too little of a step."""
STEADY_SHARE: Final = 0.98
"""A request that got less than this share of the steps' tokens was not running all the time."""
SAME_STEP: Final = 0.25
"""Tokens that came within this share of a fast step of one another came from one step."""
LEAST_STEPS: Final = 0.3
"""Expected at least in an interval: its ends are ends of steps."""
PAUSED: Final = 0.01
"""A lack of more than this share of the tokens is a pause rather than an error of the steps."""
CORRECTIONS: Final = 400

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Timeline:
    """A run cut at every first and last token into intervals in which the same requests decode."""

    bounds_s: Floats
    """[intervals + 1]."""
    begin: NDArray[np.int64]
    """Of each request's decode: the first of its intervals, [requests]."""
    end: NDArray[np.int64]
    """The first interval after it."""
    prompt_tokens: Floats
    decoded: Floats
    """Tokens after the first, and so steps that a request took part in, [requests]."""
    computed: Floats
    """Prompt tokens computed in each interval, [intervals]."""
    computed_context: Floats
    """Tokens attended to by the chunks in each interval, [intervals]."""

    @property
    def spent_s(self) -> Floats:
        """From each request's first to its last token, [requests]."""
        return self.bounds_s[self.end] - self.bounds_s[self.begin]

    @property
    def lasting_s(self) -> Floats:
        """[intervals]."""
        return np.diff(self.bounds_s)

    @property
    def long(self) -> NDArray[np.bool_]:
        """Requests whose tokens say how many steps passed, [requests]."""
        return (self.decoded >= LEAST_TOKENS - 1) & (self.spent_s > 0)

    def over_decode(self, values: Floats) -> Floats:
        """Sum of `values` [intervals, ...] over each request's decode, [requests, ...]."""
        total = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])
        return total[self.end] - total[self.begin]

    def beside(self, values: Floats) -> Floats:
        """Sum of `values` [requests] over the requests that decode in each interval."""
        size = len(self.bounds_s)
        comes: Floats = np.bincount(self.begin, values, size).astype(np.float64)
        goes: Floats = np.bincount(self.end, values, size).astype(np.float64)
        return np.cumsum(comes - goes)[:-1]


def timeline_of(run: ServedRun) -> Timeline:
    """The timeline of one engine's log.

    A prompt is computed evenly from its scheduling to its first token, or, where the log does not
    say when it was scheduled, in the step that gave that token; in as many chunks as the token
    budget of the run's settings asks for, or in one.
    """
    frame = run.requests
    first, finish, prompts, outputs = (
        frame[name].to_numpy().astype(np.float64)
        for name in ("first_token_s", "finish_s", "prompt_tokens", "output_tokens")
    )
    decoded = outputs - 1
    bounds_s = _step_ends(first, finish, decoded)
    begin, end = (np.searchsorted(bounds_s, at, side="right") - 1 for at in (first, finish))
    cached = frame["cached_tokens"].fill_null(0).to_numpy().astype(np.float64)
    rest = np.maximum(prompts - cached, 1.0)
    budget = run.settings.get("scheduler", {}).get("max_num_batched_tokens") or np.inf
    began = frame["scheduled_s"].fill_null(frame["first_token_s"]).to_numpy()
    prompts_of = _Prompts(bounds_s, np.minimum(began, first), first, begin)
    return Timeline(
        bounds_s,
        begin,
        end,
        prompts,
        decoded,
        computed=prompts_of.spread(rest),
        computed_context=prompts_of.spread(chunk_contexts(rest, cached, budget)),
    )


def even_steps(line: Timeline) -> Floats:
    """Steps in each interval if every request got its tokens evenly."""
    long = line.long
    rates = np.where(long, line.decoded / np.where(long, line.spent_s, 1.0), 0.0)
    many = np.maximum(line.beside(long.astype(np.float64)), 1.0)
    return line.beside(rates) / many * line.lasting_s


def steps_near(line: Timeline, expected: Floats) -> Floats:
    """Steps in each interval: over each request's decode as many as it got tokens, and else as
    expected.

    Simultaneous multiplicative corrections: each interval is multiplied by the geometric mean of
    what the requests that decode in it lack. They lead towards the least relative entropy to
    `expected`. A request cannot get more than a token a step, but fewer, if it paused: its word
    counts the less the more it lacks.
    """
    long = line.long
    decoding = line.beside(np.ones(len(long))) > 0
    steps = np.where(decoding, np.maximum(expected, LEAST_STEPS), 0.0)
    tokens = np.maximum(line.decoded, 1e-9)
    for _ in range(CORRECTIONS):
        lack = np.log(tokens / np.maximum(line.over_decode(steps), 1e-9))
        word = np.where(long, (PAUSED / np.maximum(-lack, PAUSED)) ** 2, 0.0)
        steps *= np.exp(line.beside(word * lack) / np.maximum(line.beside(word), 1e-9))
    return steps


def shares_of(line: Timeline, steps: Floats) -> Floats:
    """Of the steps over its decode, the share that each request took part in; 1 for nearly all."""
    share = line.decoded / np.maximum(line.over_decode(steps), 1e-9)
    return np.where((share > STEADY_SHARE) | ~line.long, 1.0, share)


def sums_of(line: Timeline, steps: Floats, share: Floats) -> Floats:
    """What a linear cost multiplies, summed over the steps of each interval, [intervals, 4]: steps,
    prompt tokens, decodes, tokens attended to. `share` [requests] is as `shares_of` has it."""
    so_far = np.concatenate([[0.0], np.cumsum(steps)])
    middle = (so_far[:-1] + so_far[1:]) / 2
    decoding = line.beside(share)
    # at step s of the run a decode attends to its prompt, the first token and those since
    before = share * (line.prompt_tokens + 1.5 - so_far[line.begin])
    contexts = line.beside(before) + decoding * middle
    return np.column_stack(
        [steps, line.computed, steps * decoding, steps * contexts + line.computed_context]
    )


def _step_ends(first: Floats, finish: Floats, decoded: Floats) -> Floats:
    """The moments at which tokens came, those of one step once."""
    several = decoded > 0
    gaps_s = (finish - first)[several] / decoded[several]
    near_s = SAME_STEP * float(np.quantile(gaps_s, 0.05)) if len(gaps_s) else 0.0
    moments = np.unique(np.concatenate([first, finish])).tolist()
    ends = moments[:1]
    for moment in moments:
        if moment - ends[-1] > near_s:
            ends.append(moment)
    return np.array(ends)


@dataclass(frozen=True)
class _Prompts:
    """When prompts were computed."""

    bounds_s: Floats
    began: Floats
    first: Floats
    begin: NDArray[np.int64]

    def spread(self, amounts: Floats) -> Floats:
        """`amounts` [requests] by interval: evenly from `began` to `first`, or, where that is no
        time, in the interval that ends with the first token."""
        bounds_s, result = self.bounds_s, np.zeros(len(self.bounds_s) - 1)
        took_s = self.first - self.began
        at_once = took_s <= 0
        after = self.begin > 0  # what came with the first moment was computed before it
        np.add.at(result, self.begin[at_once & after] - 1, amounts[at_once & after])
        for i in np.flatnonzero(~at_once & after):
            since = max(int(np.searchsorted(bounds_s, self.began[i], side="right")) - 1, 0)
            until = int(np.searchsorted(bounds_s, self.first[i]))
            edges = np.clip(bounds_s[since : until + 1], self.began[i], self.first[i])
            result[since:until] += amounts[i] * np.diff(edges) / took_s[i]
        return result


def chunk_contexts(rest: Floats, cached: Floats, budget: float) -> Floats:
    """Tokens attended to by all chunks of a prompt: what is before each of them and in it."""
    if np.isinf(budget):
        return cached + rest
    whole = np.floor(rest / budget)
    last = rest > whole * budget
    return budget * whole * (whole + 1) / 2 + np.where(last, rest, 0.0) + cached * (whole + last)
