"""The turnstile of the fast lane, in time that the tests make: turns, bounds, what a burst is, and a whole overload."""

from collections import deque
from collections.abc import Callable

import pytest

from service import turnstile
from service.errors import Overloaded
from service.settings import QueueSettings
from service.turnstile import BURST_S, CALM_S, SHARE_MIN, TURN_S, Turnstile

ROW_S = 20e-6
SHARE = int(TURN_S / ROW_S)


class Service:
    """A loop and a pipeline behind a turnstile: a turn takes ROW_S a row and nothing else takes any time."""

    def __init__(self, queue: QueueSettings | None = None) -> None:
        self.now = 10.0
        self.n_held = self.n_rows = 0
        self.offered: list[Request] = []
        self.turns: list[int] = []  # rows of each
        self.row_s = ROW_S
        self.full: Overloaded | None = None
        self._soon: deque[Callable[[], object]] = deque()
        clock = lambda: self.now  # noqa: E731  # the same for both
        self.turnstile = Turnstile(self, queue or QueueSettings(), clock, clock, self._soon.append)

    @property
    def n_waiting(self) -> int:
        return self.n_held + len(self.offered)

    def iterate(self) -> None:
        """What was called soon before now."""
        for _ in range(len(self._soon)):
            self._soon.popleft()()

    def ask(self, *, is_eager: bool = False) -> "Request | None":
        """One more request; None if it is refused."""
        if not self.turnstile.has_room(self.now, is_eager=is_eager):
            return None
        request = Request(self, self.now)
        self.turnstile.take(request)
        return request

    def offer(self, request: "Request") -> None:
        if not self.offered:
            self._soon.append(self._turn)
        self.offered.append(request)

    def _turn(self) -> None:
        rows, self.offered = self.offered, []
        self.now += self.row_s * len(rows)
        self.n_rows += len(rows)
        self.turns.append(len(rows))
        for request in rows:
            request.answered = self.now


class Request:
    def __init__(self, service: Service, came: float) -> None:
        self._service = service
        self.came = came
        self.answered = 0.0

    def go_on(self) -> None:
        if self._service.full is None:
            self._service.offer(self)
        else:
            self._service.turnstile.close(self._service.full)


def test_lone_request_goes_on_at_once() -> None:
    """Nothing is held while a turn has room."""
    service = Service()
    request = service.ask()
    assert request is not None
    assert (service.n_held, service.offered) == (0, [request])
    service.iterate()
    assert request.answered > 0


def test_many_are_scored_in_order_a_share_in_a_turn() -> None:
    """500 at once are let in; each turn takes a share of them, first come first served, and then nobody is held."""
    service = Service()
    requests = [service.ask() for _ in range(500)]
    assert service.n_held == 500 - SHARE
    while service.n_waiting:
        service.iterate()
    assert sum(service.turns) == 500
    assert max(service.turns) <= SHARE + 2  # what a row takes is measured again and again
    times = [request.answered for request in requests if request is not None]
    assert len(times) == 500
    assert times == sorted(times)


@pytest.mark.parametrize(("row_s", "low", "high"), [(4e-6, 200, 260), (100e-6, SHARE_MIN, SHARE_MIN), (40e-6, 24, 26)])
def test_turn_takes_as_long_however_long_a_row_takes(row_s: float, low: int, high: int) -> None:
    """The share follows what rows took of late, but a batch is never tiny."""
    service = Service()
    service.row_s = row_s
    for _ in range(20_000 if row_s < ROW_S else 3_000):
        service.ask()
        if service.n_waiting > 400:
            service.iterate()
    assert low <= service.turns[-2] <= high


def test_pause_of_the_loop_counts_as_two_rows_at_most() -> None:
    """One turn that took a second, for whatever reason, does not make the next ones tiny."""
    service = Service()
    for row_s in (ROW_S, 1.0 / SHARE):
        service.row_s = row_s
        for _ in range(SHARE):
            service.ask()
        service.iterate()
    service.row_s = ROW_S
    for _ in range(2 * SHARE):
        service.ask()
    service.iterate()
    assert service.turns[-1] >= SHARE * 0.85


def test_patient_clients_wait_up_to_the_limit() -> None:
    """However long the queue is long, those who wait for their replies are let in up to queue.wait_ms_max, and then told so."""
    service = Service(QueueSettings(wait_ms_max=10.0))
    n_in = 0
    while service.ask() is not None:
        n_in += 1
    assert n_in == SHARE * 10
    assert "queue.wait_ms_max = 10" in service.turnstile.refusal().detail
    for _ in range(200):  # a closed loop: one comes for each one that is answered
        service.iterate()
        while service.n_waiting < n_in - SHARE:
            assert service.ask() is not None
    assert not service.turnstile.is_strict


def test_eager_clients_may_burst_but_not_stay() -> None:
    """Where more than queue.eager_wait_ms_max waits for BURST_S the eager ones are refused, the patient ones are not."""
    service = Service(QueueSettings(wait_ms_max=1_000.0))
    began, refused_at = service.now, 0.0
    while not refused_at:
        for _ in range(2 * SHARE):
            if service.ask(is_eager=True) is None:
                refused_at = service.now
                break
        service.iterate()
    assert BURST_S <= refused_at - began < BURST_S * 1.2
    assert service.turnstile.is_strict
    assert "queue.eager_wait_ms_max = 2" in service.turnstile.refusal().detail
    assert service.ask() is not None
    while service.n_waiting > SHARE:
        assert service.ask(is_eager=True) is None or service.n_waiting < 3 * SHARE
        service.iterate()
    while service.n_waiting:
        service.iterate()
    service.now += CALM_S * 1.01
    assert all(service.ask(is_eager=True) is not None for _ in range(10 * SHARE))


def test_queue_that_empties_is_no_overload() -> None:
    """Bursts of four turns every 5 ms, for a second: never a refusal."""
    service = Service()
    for _ in range(200):
        assert all(service.ask(is_eager=True) is not None for _ in range(4 * SHARE))
        while service.n_waiting:
            service.iterate()
        service.now += 1e-3


def test_held_ones_count_in_the_queue() -> None:
    """queue.events_max bounds what is held and what is being scored together."""
    service = Service(QueueSettings(events_max=SHARE * 2 + 5, eager_wait_ms_max=0))
    n_in = sum(service.ask() is not None for _ in range(400))
    assert n_in == service.n_waiting == SHARE * 2 + 5
    assert f"queue.events_max = {n_in}" in service.turnstile.refusal().detail


def test_scoring_without_room_closes_the_turnstile_for_a_turn() -> None:
    """What the scoring said goes to all until the end of the turn; then it is asked again."""
    service = Service()
    service.full = Overloaded("the dirty profiles are 200000")
    assert service.ask() is not None  # it went on, and was refused there
    assert service.ask() is None
    assert service.turnstile.refusal() is service.full
    service.full = None
    service.iterate()
    assert service.ask() is not None


def overload(service: Service, capacity: float, factor: float, seconds: float) -> tuple[int, list[float], list[float]]:
    """64 eager connections, `factor` times the capacity; a read or write takes 8 µs, a refusal 1. How many were answered with
    a score, their latencies, and those of the refusals, which stand behind what their connection sent before."""
    end, begun, n_sent = service.now + seconds, service.now, 0
    pending: list[deque[tuple[float, Request | None]]] = [deque() for _ in range(64)]
    scored: list[tuple[float, float]] = []
    refused: list[tuple[float, float]] = []
    while service.now < end:
        service.now += 20e-6
        service.iterate()
        n_due = int((service.now - begun) * capacity * factor)
        for number in range(n_sent, n_due):
            came, connection = begun + number / (capacity * factor), pending[number % 64]
            service.now += 1e-6 if number >= n_sent + 64 else 9e-6
            request = service.ask(is_eager=True)
            connection.append((came, request))
        n_sent = n_due
        for connection in pending:
            while connection and (connection[0][1] is None or connection[0][1].answered):
                came, request = connection.popleft()
                (refused if request is None else scored).append((came - begun, service.now - came))
    steady = [[took for came, took in each if came > 2 * BURST_S] for each in (scored, refused)]
    return len(scored), sorted(steady[0]), sorted(steady[1])


def test_twice_the_capacity_is_answered_at_capacity_and_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goodput, latency of what is scored, latency of what is refused, once the burst is over."""
    everything = QueueSettings(events_max=10_000_000, wait_ms_max=60_000, eager_wait_ms_max=60_000)
    capacity = overload(Service(everything), 1 / ROW_S, 1.5, 0.5)[0] / 0.5
    n_scored, scored, refused = overload(Service(), capacity, 2.0, 1.0)
    assert n_scored > 0.85 * capacity
    assert scored[len(scored) * 99 // 100] < 10e-3
    assert refused[len(refused) * 99 // 100] < 5e-3
    monkeypatch.setattr(turnstile, "BURST_S", 10.0)  # and without the bound it takes seconds
    assert overload(Service(QueueSettings(wait_ms_max=60_000)), capacity, 2.0, 0.5)[1][-1] > 0.1
