"""Settings: the four sources merge in order, and each mistake is named with key, value and limit."""

from pathlib import Path

import pytest

from service.errors import SettingsError
from service.settings import Settings, load_settings


def _refused(**sources: object) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load_settings(**sources)  # type: ignore[arg-type]  # wrong sources are the point
    return caught.value


def test_load_without_sources_gives_defaults() -> None:
    """No file, no variables, no overrides: the documented defaults."""
    assert load_settings() == Settings()
    assert load_settings().server.port == 8080


def test_load_precedence_override_beats_env_beats_file(tmp_path: Path) -> None:
    """--set wins over the environment, which wins over the file, which wins over the default."""
    config = tmp_path / "weir.toml"
    config.write_text("[queue]\nevents_max = 1001\nbatch_max = 101\n[l1]\nenabled = false\n")
    env = {"WEIR_QUEUE__EVENTS_MAX": "1002", "WEIR_QUEUE__BATCH_MAX": "102"}
    settings = load_settings(config, ["queue.events_max=1003"], env)
    assert settings.queue.events_max == 1003
    assert settings.queue.batch_max == 102
    assert settings.l1.enabled is False


def test_load_top_level_keys_from_every_source(tmp_path: Path) -> None:
    """Settings outside of tables work in the file, the environment and overrides."""
    config = tmp_path / "weir.toml"
    config.write_text('spec = "handbook"\n')
    settings = load_settings(config, ["embedded=true"], {"WEIR_DATA_DIR": "/var/lib/weir"})
    assert (settings.spec, settings.embedded, settings.data_dir) == ("handbook", True, Path("/var/lib/weir"))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("redis.namespace=123", "123"),
        ('redis.namespace="a"', "a"),
        ("redis.url=redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis.url=", None),
        ("bloom.fpp=0.001", 0.001),
        ("time.clock=stream", "stream"),
        ("l1.bytes_max=1_000_000", 1_000_000),
    ],
)
def test_override_text_is_read_as_its_setting_asks(override: str, value: object) -> None:
    """Numbers and booleans are TOML, text may go without quotes, an empty value resets an optional setting."""
    section, _, leaf = override.partition("=")[0].partition(".")
    assert getattr(getattr(load_settings(overrides=[override]), section), leaf) == value


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("l1.byte_max", "l1.bytes_max"), ("port", "server.port"), ("reddis.url", "redis.url"), ("sepc", "spec")],
)
def test_unknown_key_is_refused_with_nearest(key: str, nearest: str) -> None:
    """A key that does not exist is named together with the one that was probably meant."""
    error = _refused(overrides=[f"{key}=1"])
    assert error.field == key
    assert f"no setting {key}; did you mean {nearest}?" in str(error)


def test_unknown_variable_with_table_is_refused_and_without_is_not() -> None:
    """WEIR_L1__TYPO is ours; WEIR_PORT is what Kubernetes sets for a service called weir."""
    assert "did you mean l1.bytes_max" in str(_refused(env={"WEIR_L1__BYTES_MX": "1"}))
    assert load_settings(env={"WEIR_PORT": "tcp://10.0.0.1:80", "WEIR_TRACEBACK": "1"}) == Settings()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("server.port=65536", ["server.port", "65536", "<= 65535"]),
        ("server.port=-1", ["server.port", "-1", ">= 0"]),
        ("server.port=true", ["server.port", "True", "expected int"]),
        ("server.port=80.5", ["server.port", "80.5", "expected int"]),
        ("l1.enabled=yes", ["l1.enabled", "'yes'", "expected bool"]),
        ("journal.sync=never", ["journal.sync", "'never'", "group, interval, os"]),
        ("bloom.fpp=0", ["bloom.fpp", "0", "> 0"]),
        ("decide.review_threshold=nan", ["decide.review_threshold", "nan"]),
        ("spec=", ["spec", "''", "length >= 1"]),
        ("data_dir=", ["data_dir", "''", "path"]),
        ("l1=1", ["l1 is a table", "l1.bytes_max"]),
        ("nonsense", ["key=value"]),
    ],
)
def test_bad_value_names_key_value_and_limit(override: str, parts: list[str]) -> None:
    """Type and range errors say which key, which value and what would be right."""
    message = str(_refused(overrides=[override]))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("port", [0, 65535])
def test_value_at_limit_is_accepted(port: int) -> None:
    """Both ends of a range belong to it."""
    assert load_settings(overrides=[f"server.port={port}"]).server.port == port


def test_url_error_hides_password() -> None:
    """A refused URL is shown without its password."""
    message = str(_refused(overrides=["redis.url=http://user:hunter2@h"]))
    assert "hunter2" not in message
    assert "user:***@h" in message


def test_limits_across_settings_are_checked() -> None:
    """A review threshold above the decline threshold and a batch larger than the queue are refused."""
    thresholds = ["decide.review_threshold=0.9", "decide.decline_threshold=0.5"]
    assert _refused(overrides=thresholds).field == "decide.review_threshold"
    assert _refused(overrides=["queue.events_max=5", "queue.batch_max=6"]).field == "queue.batch_max"
    assert load_settings(overrides=["queue.events_max=5"]).queue.batch_max == 5


@pytest.mark.parametrize(
    ("text", "part"),
    [("port = ", "not TOML"), ("[lone]\nx = 1", "no setting lone"), ("[l1]\nx = 1", "no setting l1.x"), ("l1 = 3", "table")],
)
def test_bad_file_is_named(tmp_path: Path, text: str, part: str) -> None:
    """What is wrong in a file is told with the path of the file."""
    config = tmp_path / "weir.toml"
    config.write_text(text)
    message = str(_refused(config=config))
    assert str(config) in message
    assert part in message


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A config file that is not there is an error, not an empty file."""
    assert "does not exist" in str(_refused(config=tmp_path / "no.toml"))
