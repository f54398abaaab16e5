"""docs/reference/settings.md: every setting with its text, unit, default and bounds, made from service/settings.py.

The text of a setting is the comment beside it and the lines of comment right above it (ADR 0035), a table's its docstring.
"""

import ast
import inspect
import io
import re
import tokenize
from typing import Any, Final

from service import settings as module
from service.setting_sources import allowed, variable_of, written
from service.settings import CATALOGUE, Settings

# Last words of a name -> unit.
UNITS: Final = (
    (r"(?:^|_)bytes(?:_max)?$", "bytes"),
    (r"_ms(?:_max)?$", "ms"),
    (r"_s(?:_max)?$", "s"),
    (r"_minutes$", "min"),
    (r"_hours$", "h"),
    (r"(?:^|_)(?:share|fpp)$", "share"),
    (r"_threshold$", "risk score"),
)
GROUPED_FROM: Final = 10_000
_PRECEDENCE: Final = """\
<!-- Made by `make reference` from service/settings.py: change that. -->
# Settings

Later sources win:

1. the defaults below,
2. the TOML file that `--config FILE` names: top-level keys, and a table for each heading below,
3. the environment: `WEIR_` and the key in capitals, with two underscores for the dot (`WEIR_L1__BYTES_MAX=1000000`),
4. the command line: `--set l1.bytes_max=1000000`, repeatable, and `serve`'s own options (`--port`, `--data-dir`, ...).

A value in the environment or after `--set` is read as TOML, text may go without quotes, and an empty one resets a setting that
may be nothing. A key that does not exist, a value of the wrong type or out of bounds, and values that do not fit together are
refused at the start, with key, value, what is allowed and where it came from. Of the environment, unknown names without two
underscores are ignored: an orchestrator may have set them.

```sh
echo 'l1.bytes_max = 1_000_000' > weir.toml
weir config check --config weir.toml     # everything that is wrong, one line each; exit code 2 if anything is
weir config show --config weir.toml      # every value with its origin; passwords masked; --json
```

Tiers, scorer and models that were changed while the service ran (`PUT /v1/tiers/{name}` and the like) outlive a restart and
then count instead of the settings. `weir-go` has a subset of these: `weir-go --help`.
"""


def settings_page() -> str:
    """The page as Markdown."""
    texts = texts_of(module)
    parts = [_PRECEDENCE]
    top = [key for key in CATALOGUE.types if "." not in key]
    parts.append(_table("Top level", "Before any table of the file.", top, texts))
    for name, table in CATALOGUE.tables.items():
        keys = [key for key in CATALOGUE.types if key.startswith(f"{name}.")]
        parts.append(_table(f"[{name}]", inspect.getdoc(table) or "", keys, texts))
    return "\n".join(parts)


def texts_of(source: Any = module) -> dict[str, str]:
    """The text of every setting by its key, "" where there is none."""
    text = inspect.getsource(source)
    comments = _comments(text)
    found: dict[str, str] = {}
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    named = {table.__name__: f"{name}." for name, table in CATALOGUE.tables.items()} | {Settings.__name__: ""}
    for name, prefix in named.items():
        for field in classes[name].body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                lines = [comments.get(field.end_lineno or 0, (False, ""))[1]]
                at = field.lineno - 1
                while comments.get(at, (False, ""))[0]:
                    lines.insert(0, comments[at][1])
                    at -= 1
                found[prefix + field.target.id] = " ".join(line for line in lines if line)
    return {key: found[key] for key in CATALOGUE.types}


def unit_of(key: str) -> str:
    """The unit that the name of a setting tells; "" for none."""
    leaf = key.rpartition(".")[2]
    return next((unit for pattern, unit in UNITS if re.search(pattern, leaf)), "")


def default_of(key: str) -> str:
    """The default as one would write it."""
    value = CATALOGUE.defaults[key]
    if value is None:
        return "nothing"
    if isinstance(value, int) and value >= GROUPED_FROM:
        return f"{value:_}"
    return f'"{value}"' if isinstance(value, str) else written(value)


def _comments(text: str) -> dict[int, tuple[bool, str]]:
    """Line -> whether it is a comment alone, and the comment's text."""
    return {
        token.start[0]: (token.line.lstrip().startswith("#"), token.string.lstrip("# ").strip())
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }


def _table(title: str, text: str, keys: list[str], texts: dict[str, str]) -> str:
    lines = [
        f"## {title}",
        "",
        " ".join(text.split()),
        "",
        "| setting | default | unit | allowed | what it is |",
        "|---|---|---|---|---|",
    ]
    for key in keys:
        cells = (f"`{key}`", f"`{default_of(key)}`", unit_of(key), _code(allowed(CATALOGUE.kinds[key])), texts[key])
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    example = keys[0]
    return "\n".join([*lines, "", f"In the environment: `{variable_of(example)}` and so on.", ""])


def _code(text: str) -> str:
    """A pattern stands as code, the rest as it is."""
    return re.sub(r"text like (\S+?)(,|$)", r"text like `\1`\2", text)
