"""compose/image_check.py reads the Dockerfile and .dockerignore as Docker does; `make image-check` carries them out."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RULES = ["*", "!gocore", "!README.md", "gocore/build", "**/__pycache__", "**/*_test.go"]


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The script, which is no package's module."""
    spec = importlib.util.spec_from_file_location("image_check", ROOT / "compose" / "image_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stages_have_their_instructions_with_continued_lines_joined(check: ModuleType) -> None:
    """Comments between continued lines go, too."""
    text = '# a\nFROM x AS build\nRUN one \\\n    # why\n    && two\nCOPY a b ./\nFROM y\nENTRYPOINT ["weir"]\n'
    found = [list(stage) for stage in check.stages(text)]
    assert found == [[("RUN", "one && two"), ("COPY", "a b ./")], [("ENTRYPOINT", '["weir"]')]]


def test_real_dockerfile_has_what_the_check_carries_out(check: ModuleType) -> None:
    """Two stages; in the last the commands that are run."""
    build, image = (list(stage) for stage in check.stages((ROOT / "compose" / "Dockerfile").read_text()))
    assert {"RUN", "COPY"} <= {word for word, _ in build}
    assert {"ENTRYPOINT", "CMD", "HEALTHCHECK", "STOPSIGNAL"} <= {word for word, _ in image}


@pytest.mark.parametrize(
    ("place", "ignored"),
    [
        ("README.md", False), ("docs", True), ("gocore/go.mod", False), ("gocore/build", True), ("gocore/build/weir-go", True),
        ("gocore/capi/capi.go", False), ("gocore/capi/handles_test.go", True), ("gocore/__pycache__/a.pyc", True),
    ],
)  # fmt: skip
def test_last_rule_that_matches_decides(check: ModuleType, place: str, ignored: bool) -> None:
    """A rule for a folder holds for all below it."""
    assert check.is_ignored(place, RULES) is ignored
