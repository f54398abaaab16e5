"""`weir bench scorers`: the smoke run, and that the plain Python objects it compares with do the engine's work."""

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from features.advance import advance
from features.plan import compile_plan
from features.slab import Slab
from features.spec import load_spec
from features.vector import VectorBuilder
from gocore.locate import missing_core
from loadgen.bench.children import BenchError
from loadgen.bench.scorers.objects import ObjectEngine
from loadgen.bench.scorers.ort import RawSession
from loadgen.bench.scorers.result import ScorersResult
from loadgen.bench.scorers.stream import Stream, ring_moves
from models.card import ARTIFACTS, MODEL_FILE
from models.onnx_scorer import OnnxScorer

pytestmark = pytest.mark.bench

PLAN = compile_plan(load_spec("cards"))
MODEL = ARTIFACTS / "cards" / MODEL_FILE
HOUR_US = 3_600_000_000.0


@pytest.mark.parametrize("step_us", [50.0, HOUR_US / 100, HOUR_US / 7, 13 * HOUR_US, 200 * HOUR_US])
def test_objects_have_the_engines_features(step_us: float) -> None:
    """At every pace, from no ring moving to all of them turning over, plain objects give the vectors that the engine gives."""
    stream, builder = Stream(PLAN, 40, step_us, 11), VectorBuilder(PLAN)
    slabs, objects = [Slab(kind, stream.per_kind) for kind in PLAN.kinds], ObjectEngine(stream.per_kind)
    for _ in range(8):
        block = stream.draw(150)
        expected = builder.build(advance(PLAN, slabs, block.slots, block.columns, block.lsns)[0])
        vectors = np.array([objects.vector(numbers, event) for numbers, event in block.events()], dtype=np.float32)
        np.testing.assert_allclose(vectors, expected, rtol=1e-6, atol=1e-6)


def test_ring_moves_are_those_of_each_event() -> None:
    """Counting the moves of a block ahead gives what counting them event by event gives."""
    stream, slabs = Stream(PLAN, 40, HOUR_US / 3, 5), [Slab(kind, 10) for kind in PLAN.kinds]
    for block in stream.each_once(0):
        advance(PLAN, slabs, block.slots, block.columns, block.lsns)
    block = stream.draw(60)
    ahead = ring_moves(PLAN, slabs, block)
    moves = 0
    for row in range(60):
        one = block.part(row, 1)
        moves += ring_moves(PLAN, slabs, one)
        advance(PLAN, slabs, one.slots, one.columns, one.lsns)
    assert ahead == moves > 0


def test_raw_session_scores_as_the_python_session() -> None:
    """The C API by way of its table of functions gives the scores of the Python layer, whatever sizes follow each other."""
    raw, scorer = RawSession(MODEL, 64, PLAN.n_features), OnnxScorer(PLAN, MODEL)
    raw.vectors[:] = np.random.default_rng(3).normal(size=raw.vectors.shape)
    for n in (64, 1, 7, 64):
        raw.risk[:] = -1
        raw.run(n)
        np.testing.assert_allclose(raw.risk[:n], scorer.infer(raw.vectors[:n]), atol=1e-7)
        assert (raw.risk[n:] == -1).all()


def test_raw_session_without_a_model_says_why(tmp_path: Path) -> None:
    """A file that is no model is refused with onnxruntime's own words."""
    bad = tmp_path / "model.onnx"
    bad.write_bytes(b"no model")
    with pytest.raises(BenchError, match="onnxruntime: "):
        RawSession(bad, 1, PLAN.n_features)


def test_quick_run_writes_table_json_and_page(tmp_path: Path) -> None:
    """The smoke run measures every arm, proves that their scores agree, and writes all that it promises."""
    json_out, html_out = tmp_path / "scorers.json", tmp_path / "scorers.html"
    command = [sys.executable, "-m", "service", "bench", "scorers", "--quick", "--json", str(json_out), "--html", str(html_out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(json_out.read_bytes(), type=ScorersResult)
    arms = {"ort", "session.run", "onnx", "objects"} | ({"go"} if missing_core() is None else set())
    for scene in result.scenes:
        for n in result.options.rows:
            cells = {cell.arm: cell for cell in result.cells if (cell.scene, cell.n) == (scene.name, n)}
            assert set(cells) == arms
            sums = [cell.checksum for cell in cells.values()]
            assert max(sums) - min(sums) < 1e-3
            assert all(cell.total_us > 0 for cell in cells.values())
    assert [scene.ring_moves_per_tx > 1 for scene in result.scenes] == [False, True]
    assert max(result.profile_bytes.values()) <= 1_536
    assert {memory.holder for memory in result.entity_memory} == {"slab", "objects"}
    assert [target.met for target in result.targets] == [None, None, None, True]  # not at the sizes of a smoke run
    assert "What this does not show" in done.stdout
    assert "session.run" in done.stdout
    assert html_out.read_text(encoding="utf-8").count('class="plot"') == 8
