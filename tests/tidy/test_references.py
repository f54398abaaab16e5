"""The generated pages are those that the code makes now, and leave nothing out."""

from pathlib import Path

from service.metrics_page import families, metrics_page
from service.setting_sources import allowed
from service.settings import CATALOGUE
from service.settings_page import settings_page, texts_of, unit_of

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_settings_page_is_current() -> None:
    """docs/reference/settings.md is what `make reference` writes."""
    assert (REFERENCE / "settings.md").read_text(encoding="utf-8") == settings_page(), "run make reference"


def test_metrics_page_is_current() -> None:
    """docs/reference/metrics.md is what `make reference` writes, and no name stands there twice."""
    assert (REFERENCE / "metrics.md").read_text(encoding="utf-8") == metrics_page(), "run make reference"
    names = [family.name for family in families()]
    assert len(names) == len(set(names))


def test_every_setting_has_a_text() -> None:
    """What a setting does is said, and what it may be; a name that ends in a unit has it in the page."""
    texts = texts_of()
    silent = [key for key in CATALOGUE.types if len(texts[key]) < 5]
    assert silent == [], "write a comment beside them in service/settings.py"
    assert [key for key in CATALOGUE.types if not allowed(CATALOGUE.kinds[key])] == []
    assert [key for key in CATALOGUE.types if key.endswith("_ms") and unit_of(key) != "ms"] == []
