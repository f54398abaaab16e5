"""The lock files hold what pyproject.toml asks for, each package by version and hash, and name no place to fetch it from."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = {"requirements.lock": "image", "requirements-dev.lock": "dev"}
PIN = re.compile(r"([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==([^ ;]+)(?: ;[^\\]*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")


def _wanted(extra: str) -> list[Requirement]:
    """The requirements of the project and of one extra, extras of the project itself taken apart."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, left = list(map(Requirement, project["dependencies"])), [extra]
    while left:
        for text in project["optional-dependencies"][left.pop()]:
            requirement = Requirement(text)
            if requirement.name == "weir":
                left += requirement.extras
            else:
                found.append(requirement)
    return found


@pytest.mark.parametrize(("name", "extra"), LOCKS.items())
def test_lock_file_is_what_pyproject_asks_for(name: str, extra: str) -> None:
    """Every requirement is there in a version that it allows; if this fails, run make lock."""
    pins = {found[1]: found[2] for found in PIN.finditer((ROOT / name).read_text())}
    for requirement in _wanted(extra):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{name} lacks {requirement.name}: make lock"
        assert requirement.specifier.contains(version), f"{name} has {requirement.name} {version}, not {requirement}: make lock"


@pytest.mark.parametrize("name", LOCKS)
def test_lock_file_is_hashes_and_versions_alone(name: str) -> None:
    """No line is without a hash, a direct reference, an option or an address."""
    text = (ROOT / name).read_text()
    rest = re.sub(r"^#.*\n", "", PIN.sub("", text), flags=re.MULTILINE)
    assert rest.strip() == ""
    assert "://" not in text
    assert len(PIN.findall(text)) > 40
