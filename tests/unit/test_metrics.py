"""The exposition: valid, each family told of once, and never long on the loop."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import metrics as module
from service.metrics import GAUGES, Histogram, Metrics
from service.metrics_page import families
from service.settings import load_settings
from service.skew_note import SKEW_FILE, SkewNotes, write_note


def _filled() -> Metrics:
    """Metrics with something in every family."""
    metrics = Metrics()
    for family in metrics.families:
        if isinstance(family, module.Counts):
            family[tuple(f'{label}"\n\\' for label in family.labels)] = 3
        else:
            for number in range(7):
                key = tuple(f"{label}{number}" for label in family.labels)
                family[key].observe(0.02)
    for gauge, (_, labels) in GAUGES.items():
        names = labels.split(",") if labels else []
        metrics.watch(gauge, lambda names=names: {tuple(names): 2.0})  # type: ignore[misc]  # mypy cannot infer the default
    return metrics


def test_exposition_is_valid_and_has_every_family_once() -> None:
    """The text is what Prometheus parses: families of the reference page, each with one head, its labels and its numbers."""
    text = _filled().render().decode()
    heads = Counter(line.split()[2] for line in text.splitlines() if line.startswith("# TYPE "))
    assert set(heads.values()) == {1}
    found = {family.name: family for family in text_string_to_metric_families(text)}
    for family in families():
        known = found[family.name.removesuffix("_total")]
        assert known.type == family.kind
        if family.name.startswith("weir_"):
            labels = set(known.samples[0].labels) - {"le"}
            assert labels == set(family.labels), family.name
    assert len(found) == sum(1 for _ in families())


def test_histogram_in_pieces_is_whole() -> None:
    """All label values are there, cumulative and with their sums, however many pieces they came in."""
    metrics = _filled()
    found = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    samples = found["weir_request_seconds"].samples
    assert {s.labels["route"] for s in samples} == {f"route{n}" for n in range(7)}
    assert [s.value for s in samples if s.name.endswith("_count")] == [1.0] * 7
    assert [s.value for s in samples if s.labels.get("le") == "0.01"] == [0.0] * 7
    assert [s.value for s in samples if s.labels.get("le") == "0.025"] == [1.0] * 7


async def test_scrape_gives_the_loop_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time to hold it, others have a turn after every piece; the text is the same."""
    monkeypatch.setattr(module, "TURN_S", -1.0)
    metrics = _filled()
    n_turns = 0

    async def others() -> None:
        nonlocal n_turns
        while True:
            n_turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    text = await metrics.render_in_turns()
    task.cancel()
    n_pieces = sum(len(list(family.pieces())) for family in metrics.families) + len(GAUGES)
    assert n_turns >= n_pieces > 90

    def without_process(text: bytes) -> list[bytes]:
        return [line for line in text.splitlines() if b"process_" not in line]

    assert without_process(text) == without_process(metrics.render())


def test_piece_of_a_histogram_is_bounded() -> None:
    """No step of the exposition has more than PIECE_HISTOGRAMS label values."""
    family = Metrics().request_seconds
    for number in range(100):
        family[f"r{number}",] = Histogram(family.bounds)
    series = [len(piece.samples) for piece in family.pieces()]
    assert sum(series) == 100 * (len(family.bounds) + 3)
    assert max(series) <= module.PIECE_HISTOGRAMS * (len(family.bounds) + 3)


def test_skew_note_is_read_when_it_changes(tmp_path: Path) -> None:
    """None without a note; then the newest; a damaged one is none."""
    notes = SkewNotes(load_settings(None, [f"data_dir={tmp_path}"]).data_dir)
    assert notes.newest() is None
    write_note(tmp_path, 10, 1)
    note = notes.newest()
    assert note is not None
    assert (note.compared, note.differing) == (10, 1)
    assert notes.newest() is note
    (tmp_path / SKEW_FILE).write_bytes(b"{}")
    assert notes.newest() is None
