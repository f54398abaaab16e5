"""docs/reference/metrics.md: every family of /metrics with type, labels and help, made from service/metrics.py."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from service.metrics import GAUGES, Counts, Metrics

_HEAD: Final = """\
<!-- Made by `make reference` from service/metrics.py: change that. -->
# Metrics

`GET /metrics` is open, like the health routes: it holds counts, no ids and no amounts. The hot path counts in plain numbers; a
scrape reads them, a millisecond of the event loop at a time, so that no request waits for it. What that costs is what
`weir bench price --flip metrics` measures.

A histogram NAME has the series `NAME_bucket` (with the label `le`), `NAME_sum` and `NAME_count`; times are seconds. A family
whose labels are not known before something happens has no series until then: write `or vector(0)` where that matters.
`weir-go` has the families of its own stops under the same names.

`compose/grafana/dashboards/weir.json` shows them,
`compose/prometheus/rules.yml` has alerts; a test reads every expression there and finds
each name and label in a running service.

"""


class Family(NamedTuple):
    """One row of the page."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def families() -> Iterator[Family]:
    """All families, in the order of the exposition."""
    metrics = Metrics()
    for family in metrics.families:
        is_counter = isinstance(family, Counts)
        name = f"weir_{family.name}_total" if is_counter else f"weir_{family.name}"
        yield Family(name, "counter" if is_counter else "histogram", family.labels, family.text)
    for name, (text, labels) in GAUGES.items():
        yield Family(f"weir_{name}", "gauge", tuple(labels.split(",")) if labels else (), text)
    for metric in metrics.process_families():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        yield Family(name, metric.type, (), metric.documentation)


def metrics_page() -> str:
    """The page as Markdown."""
    rows = ["| name | type | labels | what it is |", "|---|---|---|---|"]
    for family in families():
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {family.text.replace('|', ', ')} |")
    return _HEAD + "\n".join(rows) + "\n"
