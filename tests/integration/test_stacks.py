"""Every rival stack that is built here does the same work: against a real Postgres, over real connections."""

import asyncio
from pathlib import Path

import pytest

from loadgen.bench.children import BenchError
from loadgen.bench.stores import is_running
from loadgen.stacks.check import asking, check_stack
from loadgen.stacks.launch import StackSettings, start_stack
from loadgen.stacks.manifest import DATA, load_stack, missing, stack_names
from loadgen.stacks.reference import Reference
from loadgen.stacks.seed import Population, seed_database
from loadgen.stacks.weights import ModelFiles, export_models

pytestmark = pytest.mark.postgres
ROOT = Path(__file__).parents[2]
KEY = "a-key-of-the-test"
N_CARDS = 200


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """The model files of all stacks."""
    return export_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def settings(postgres_url: str, models: ModelFiles) -> StackSettings:
    """Settings with a seeded database."""
    asyncio.run(seed_database(postgres_url, Population.make(N_CARDS)))
    return StackSettings(KEY, postgres_url, models)


@pytest.mark.parametrize("name", stack_names())
def test_stack_answers_and_refuses_as_the_contract_says(
    name: str, settings: StackSettings, models: ModelFiles, tmp_path: Path
) -> None:
    """Scores within 1e-5 of onnxruntime's, 401, 404 and 422 where they belong; it stops with all of its processes."""
    stack = load_stack(name)
    if reason := missing(stack, ROOT / DATA):
        pytest.skip(reason)
    child = start_stack(stack, settings, tmp_path, ROOT / DATA)
    try:
        findings = check_stack(stack, child.url, KEY, Reference(Population.make(N_CARDS), models))
        pids = child.pids()
    finally:
        child.stop()
    assert [f"{finding.what}: {finding.problem}" for finding in findings if finding.problem] == []
    assert len(findings) >= 15
    assert not any(map(is_running, pids))


def test_check_finds_wrong_scores_and_a_refused_key(settings: StackSettings, models: ModelFiles, tmp_path: Path) -> None:
    """A stack over other features fails on its scores alone; with another key than its own, on everything that needs one."""
    stack = load_stack("fastapi-onnx")
    if reason := missing(stack, ROOT / DATA):
        pytest.skip(reason)
    other = Reference(Population.make(N_CARDS, seed=99), models)
    child = start_stack(stack, settings, tmp_path, ROOT / DATA)
    try:
        by_scores = check_stack(stack, child.url, KEY, other)
        by_key = check_stack(stack, child.url, "another-key", other)
    finally:
        child.stop()
    wrong = [finding.what for finding in by_scores if finding.problem]
    assert len(wrong) == 6  # singles, three batches, the odd id, the last one
    assert all("score" in (finding.problem or "score") for finding in by_scores)
    assert sum(finding.problem is not None for finding in by_key) > 30


def test_check_of_a_stack_that_has_gone_is_a_finding(settings: StackSettings, models: ModelFiles, tmp_path: Path) -> None:
    """A lost connection is told, not raised."""
    stack = load_stack("fastapi-onnx")
    if reason := missing(stack, ROOT / DATA):
        pytest.skip(reason)
    child = start_stack(stack, settings, tmp_path, ROOT / DATA)
    child.kill()
    (finding,) = check_stack(stack, child.url, KEY, Reference(Population.make(N_CARDS), models))
    assert "ConnectionRefusedError" in (finding.problem or "")


def test_seeding_twice_writes_once_and_another_population_replaces_the_first(postgres_url: str) -> None:
    """The same population is seen by its comment; a database that cannot be reached is one line."""
    population = Population.make(50)
    asyncio.run(seed_database(postgres_url, population))
    asyncio.run(seed_database(postgres_url, population))
    asyncio.run(seed_database(postgres_url, Population.make(20)))
    with pytest.raises(BenchError, match="the stacks' database cannot be filled"):
        asyncio.run(seed_database("postgresql://nobody@127.0.0.1:1/none", population))


def test_asker_reconnects_after_a_server_has_closed(settings: StackSettings, tmp_path: Path) -> None:
    """A connection that was idle for too long is opened again."""
    stack = load_stack("fastapi-onnx")
    if reason := missing(stack, ROOT / DATA):
        pytest.skip(reason)
    child = start_stack(stack, settings, tmp_path, ROOT / DATA)
    try:
        with asking(child.url, KEY) as asker:
            assert asker.post("/score", b"{}")[0] == 422
            asker._connection.close()
            assert asker.post("/score", b"{}")[0] == 422
    finally:
        child.stop()
