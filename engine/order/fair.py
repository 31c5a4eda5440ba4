"""Orders that share the service among tenants."""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Final

from engine.batch import Batch
from engine.order.discipline import FOREVER, QueueView
from engine.order.stated import check_at_least, check_weights
from engine.sequence import Sequence

Lines = dict[str, deque[Sequence]]
"""Waiting sequences of each tenant that has any, in order of arrival, preempted ones in front."""


class Streams:
    """Who decodes, counted by tenant."""

    __slots__ = ("_members", "count")

    def __init__(self) -> None:
        self._members: dict[Sequence, None] = {}
        self.count: dict[str, int] = {}

    def tokens(self, batch: Batch, steps: int) -> dict[str, int]:
        """Output tokens of each tenant in `steps` steps of `batch`, which are scheduled now."""
        for seq in batch.preempted:
            self.leave(seq)
        tokens: dict[str, int] = {}
        if batch.decoding:  # nobody decodes in a step of whole prompts
            tokens = {tenant: count * steps for tenant, count in self.count.items()}
            for seq in batch.left_out:
                tokens[seq.request.tenant] -= 1
        for seq in batch.exhausted:
            self.leave(seq)
        for seq in batch.completed:
            tenant = seq.request.tenant
            tokens[tenant] = tokens.get(tenant, 0) + 1
            if seq.decoding:
                self._members[seq] = None
                self.count[tenant] = self.count.get(tenant, 0) + 1
        return tokens

    def leave(self, seq: Sequence) -> None:
        """`seq` decodes no more, if it did."""
        if seq in self._members:
            del self._members[seq]
            tenant = seq.request.tenant
            self.count[tenant] -= 1
            if not self.count[tenant]:
                del self.count[tenant]


def join(lines: Lines, seq: Sequence, again: bool) -> None:
    """Put a sequence into its tenant's line."""
    line = lines.setdefault(seq.request.tenant, deque())
    if again:
        line.appendleft(seq)
    else:
        line.append(seq)


def quit_line(lines: Lines, seq: Sequence) -> None:
    """Take a sequence out of its tenant's line."""
    tenant = seq.request.tenant
    line = lines[tenant]
    if line[0] is seq:
        line.popleft()
    else:
        line.remove(seq)
    if not line:
        del lines[tenant]


class Account:
    """What a tenant has been served, exactly: tokens are whole numbers until they are compared."""

    __slots__ = ("input_tokens", "lifted", "output_tokens", "weight")

    def __init__(self, weight: float) -> None:
        self.lifted: float = 0.0
        """Service forgone by having nothing to do: it is not made up for."""
        self.input_tokens: int = 0
        self.output_tokens: int = 0
        self.weight: float = weight


class VirtualTokenCounter:
    """Least served tenant first, each tenant's requests in order of arrival (VTC).

    Service is counted in tokens: `input_weight` a prompt token when it is admitted, `output_weight`
    an output token when it is produced, divided by the tenant's weight (`vtc:gold=2`; 1 if none is
    stated). A tenant that comes back has its counter lifted to the least of those that wait.
    Source: Sheng et al., Fairness in Serving Large Language Models, OSDI'24, algorithm 2: the
    service of two tenants that always wait differs by a bound, however long. Work conserving, no
    tenant starves. It knows nothing of prefixes: interleaving tenants can cost cache hits.
    """

    def __init__(
        self,
        view: QueueView,
        *,
        input_weight: float = 1.0,
        output_weight: float = 2.0,
        **weight: float,
    ) -> None:
        check_at_least("order 'vtc'", "input_weight", input_weight, 0)
        check_at_least("order 'vtc'", "output_weight", output_weight, 0)
        check_weights("order 'vtc'", weight)
        self._input_weight: Final = input_weight
        self._output_weight: Final = output_weight
        self._weight: Final = weight
        self._lines: Lines = {}
        self._accounts: dict[str, Account] = {}
        self._streams: Final = Streams()
        self._last_out: str = ""
        """Tenant whose line emptied last."""

    def add(self, seq: Sequence, again: bool) -> None:
        """Join the tenant's line, which is lifted if it was empty."""
        tenant = seq.request.tenant
        account = self._account(tenant)
        if tenant not in self._lines and not again:
            others = self._lines or ([self._last_out] if self._last_out in self._accounts else [])
            if others:
                least = min(self._served(self._accounts[other]) for other in others)
                account.lifted += max(least - self._served(account), 0.0)
        join(self._lines, seq, again)

    def first(self) -> Sequence:
        """The oldest of the tenant served least; of equals, of the one that came first."""
        return self._lines[self._least()][0]

    def remove(self, seq: Sequence) -> None:
        """Leave the line."""
        quit_line(self._lines, seq)
        if not self._lines:
            self._last_out = seq.request.tenant

    def admitted(self, seq: Sequence) -> None:
        """Charge the prompt, once."""
        if not seq.preemptions:
            self._accounts[seq.request.tenant].input_tokens += seq.prompt_tokens

    def served(self, batch: Batch, steps: int) -> None:
        """Charge the outputs."""
        for tenant, tokens in self._streams.tokens(batch, steps).items():
            self._accounts[tenant].output_tokens += tokens

    def ended(self, seq: Sequence) -> None:
        """Count it no more among those that decode."""
        self._streams.leave(seq)

    def steady_steps(self, batch: Batch) -> int:
        """Until another tenant has been served less than the one that is first."""
        least = self._least()
        ours, our_rate = self._served(self._accounts[least]), self._rate(least)
        steps = FOREVER
        for tenant in self._lines:
            rate = self._rate(tenant)
            if tenant != least and our_rate > rate:
                margin = self._served(self._accounts[tenant]) - ours
                steps = min(steps, 1 + max(int(margin / (our_rate - rate)) - 1, 0))
        return steps

    def _account(self, tenant: str) -> Account:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account(self._weight.get(tenant, 1.0))
        return account

    def _served(self, account: Account) -> float:
        tokens = account.input_tokens * self._input_weight
        tokens += account.output_tokens * self._output_weight
        return account.lifted + tokens / account.weight

    def _least(self) -> str:
        return min(self._lines, key=lambda tenant: self._served(self._accounts[tenant]))

    def _rate(self, tenant: str) -> float:
        """How much a tenant's counter grows in a step."""
        count = self._streams.count.get(tenant, 0)
        return count * self._output_weight / self._accounts[tenant].weight


class DeficitRoundRobin:
    """Tenants in turn, each until its quantum of tokens is used up.

    At its turn a tenant's credit grows by `quantum` × its weight (`deficit-round-robin:gold=2`);
    prompts are paid on admission and outputs as they are produced, on credit, so a tenant may owe.
    Source: Shreedhar and Varghese, Efficient Fair Queueing Using Deficit Round Robin, SIGCOMM'95;
    lengths there are known before, here outputs are paid afterwards. Work conserving, no tenant
    starves. A large quantum makes bursts of one tenant, a small one mixes tenants more than their
    prefixes like.
    """

    def __init__(self, view: QueueView, *, quantum: int = 4096, **weight: float) -> None:
        check_at_least("order 'deficit-round-robin'", "quantum", quantum, 1)
        check_weights("order 'deficit-round-robin'", weight)
        self._quantum: Final = quantum
        self._weight: Final = weight
        self._lines: Lines = {}
        self._turn: deque[str] = deque()
        """Tenants with a line; whose turn it is stands first."""
        self._begun: bool = False
        """Whether the first of them has had its quantum for this turn."""
        self._credit: dict[str, float] = {}
        self._streams: Final = Streams()

    def add(self, seq: Sequence, again: bool) -> None:
        """Join the tenant's line; a new line has its turn last, and keeps what it owes."""
        tenant = seq.request.tenant
        if tenant not in self._lines:
            self._begun = self._begun and bool(self._turn)
            self._turn.append(tenant)
            if not again:
                self._credit[tenant] = min(self._credit.get(tenant, 0.0), 0.0)
        join(self._lines, seq, again)
        self._pass_on()

    def first(self) -> Sequence:
        """The oldest of the tenant whose turn it is."""
        return self._lines[self._turn[0]][0]

    def remove(self, seq: Sequence) -> None:
        """Leave the line; with it, perhaps, the round."""
        quit_line(self._lines, seq)
        tenant = seq.request.tenant
        if tenant not in self._lines:
            self._begun = self._begun and self._turn[0] != tenant
            self._turn.remove(tenant)
        self._pass_on()

    def admitted(self, seq: Sequence) -> None:
        """Pay for the prompt, once."""
        if not seq.preemptions:
            self._credit[seq.request.tenant] -= seq.prompt_tokens
            self._pass_on()

    def served(self, batch: Batch, steps: int) -> None:
        """Pay for the outputs."""
        for tenant, tokens in self._streams.tokens(batch, steps).items():
            self._credit[tenant] = self._credit.get(tenant, 0.0) - tokens
        self._pass_on()

    def ended(self, seq: Sequence) -> None:
        """Count it no more among those that decode."""
        self._streams.leave(seq)

    def steady_steps(self, batch: Batch) -> int:
        """Until the tenant whose turn it is has used up its credit."""
        tenant = self._turn[0]
        rate = self._streams.count.get(tenant, 0)
        return max(int(self._credit[tenant] / rate) - 1, 1) if rate else FOREVER

    def _pass_on(self) -> None:
        """Give the turn on until a tenant has credit; whole rounds that help nobody at once.

        Done as soon as anything changes, not when somebody asks: who is there then decides.
        """
        turn, credit = self._turn, self._credit
        if not turn:
            return
        if not self._begun:
            self._begun = True
            credit[turn[0]] += self._grant(turn[0])
        if credit[turn[0]] > 0:
            return
        rounds = min(
            ceil(-credit[tenant] / self._grant(tenant)) for tenant in turn
        )  # after these, nobody has credit yet
        for tenant in turn:
            credit[tenant] += (rounds - 1) * self._grant(tenant) if rounds > 1 else 0.0
        while credit[turn[0]] <= 0:
            turn.rotate(-1)
            credit[turn[0]] += self._grant(turn[0])

    def _grant(self, tenant: str) -> float:
        return self._quantum * self._weight.get(tenant, 1.0)


class DeficitLongestPrefixMatch:
    """Longest cached prefix first, among tenants that have credit (DLPM).

    Every tenant has a credit of tokens, refilled by `quantum` × its weight for all that wait once
    none of them has any left; what a prompt computes (not what it hits) and outputs are paid.
    Source: Cao et al., Locality-aware Fair Scheduling in LLM Serving, 2025. Between the hit ratio
    of longest-prefix-match and the fairness of VTC, by the quantum. Looks up all that wait, at most
    `most` of them, at each step in which somebody waits.
    """

    def __init__(
        self, view: QueueView, *, quantum: int = 16_384, most: int = 128, **weight: float
    ) -> None:
        check_at_least("order 'dlpm'", "quantum", quantum, 1)
        check_at_least("order 'dlpm'", "most", most, 1)
        check_weights("order 'dlpm'", weight)
        self._view: Final = view
        self._quantum: Final = quantum
        self._most: Final = most
        self._weight: Final = weight
        self._waiting: dict[Sequence, None] = {}
        self._count: dict[str, int] = {}
        """Of those that wait, by tenant."""
        self._credit: dict[str, float] = {}
        self._streams: Final = Streams()

    def add(self, seq: Sequence, again: bool) -> None:
        """Come in; a tenant seen first has a quantum."""
        tenant = seq.request.tenant
        if tenant not in self._credit:
            self._credit[tenant] = self._grant(tenant)
        self._waiting[seq] = None
        self._count[tenant] = self._count.get(tenant, 0) + 1
        self._refill()

    def first(self) -> Sequence:
        """The longest match of those with credit; of equals, the one that came first."""
        waiting, credit = self._waiting, self._credit
        able = [seq for seq in waiting if credit[seq.request.tenant] > 0]
        if len(waiting) > self._most:
            return able[0]
        return max(able, key=self._view.cached_tokens)

    def remove(self, seq: Sequence) -> None:
        """Leave the queue."""
        del self._waiting[seq]
        tenant = seq.request.tenant
        self._count[tenant] -= 1
        if not self._count[tenant]:
            del self._count[tenant]
        self._refill()

    def admitted(self, seq: Sequence) -> None:
        """Pay for what the prompt must compute, once."""
        if not seq.preemptions:
            self._credit[seq.request.tenant] -= seq.prompt_tokens - seq.cached_tokens
            self._refill()

    def served(self, batch: Batch, steps: int) -> None:
        """Pay for the outputs."""
        for tenant, tokens in self._streams.tokens(batch, steps).items():
            self._credit[tenant] = self._credit.get(tenant, 0.0) - tokens
        self._refill()

    def ended(self, seq: Sequence) -> None:
        """Count it no more among those that decode."""
        self._streams.leave(seq)

    def steady_steps(self, batch: Batch) -> int:
        """One: the cache changes, and credit is used."""
        return 1 if len(self._waiting) > 1 else FOREVER

    def _refill(self) -> None:
        """Refill as soon as none that waits has credit, not when somebody asks."""
        credit, tenants = self._credit, self._count
        if tenants and all(credit[tenant] <= 0 for tenant in tenants):
            refills = min(int(-credit[tenant] / self._grant(tenant)) + 1 for tenant in tenants)
            for tenant in tenants:
                credit[tenant] += refills * self._grant(tenant)

    def _grant(self, tenant: str) -> float:
        return self._quantum * self._weight.get(tenant, 1.0)
