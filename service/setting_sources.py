"""Where the values of settings come from: a TOML file, variables, overrides. Which settings there are `Catalogue` is told.

Later sources win: defaults < file < environment < command line. Whatever is wrong becomes a Problem with key, value, what is
allowed and where it came from; reading goes on, so that all of them are told at once. A value that is refused counts as not
given. Secrets never stand in a message: passwords in URLs are masked, as are settings named so.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

ENV_PREFIX: Final = "WEIR_"
COMMAND_LINE: Final = "command line"
DEFAULT: Final = "default"
MASK: Final = "***"
VALUE_CHARS_MAX: Final = 80  # of a value in a message
VALUE_LINES_MAX: Final = 50  # of one value in a file
NEAR: Final = 0.8  # likeness from which a variable is taken for a misspelt one of ours

_IS_SECRET: Final = re.compile(r"(?:^|[_.])(?:password|secret|token)\Z")
_URL_PASSWORD: Final = re.compile(r"(://[^/?#@:]*):[^/?#]*@")  # up to the last @ of the authority
_QUERY_PASSWORD: Final = re.compile(r"([?&](?:password|passwd|passphrase|token|secret)=)[^&#'\"\s]*", re.IGNORECASE)


class Problem(NamedTuple):
    """One mistake; `key` is the setting, or what was taken for one."""

    key: str
    text: str


class Value(NamedTuple):
    """A value as it was given, and where."""

    value: Any
    origin: str


class Catalogue:
    """Every setting of `whole`, a struct of values and of tables of values, by dotted key."""

    def __init__(self, whole: type[msgspec.Struct], table: type[msgspec.Struct]) -> None:
        self.whole = whole
        self.tables: dict[str, type[msgspec.Struct]] = {}
        self.types: dict[str, Any] = {}
        self.kinds: dict[str, inspect.Type] = {}
        self.defaults: dict[str, Any] = {}
        for field in msgspec.structs.fields(whole):
            if isinstance(field.type, type) and issubclass(field.type, table):
                self.tables[field.name] = field.type
                for leaf in msgspec.structs.fields(field.type):
                    self._add(f"{field.name}.{leaf.name}", leaf)
            else:
                self._add(field.name, field)

    def _add(self, key: str, field: msgspec.structs.FieldInfo) -> None:
        self.types[key] = field.type
        self.kinds[key] = inspect.type_info(field.type)
        self.defaults[key] = field.default

    def unknown(self, key: str) -> str:
        """What to say of a key that is none."""
        if key in self.tables:
            members = ", ".join(name for name in self.types if name.startswith(f"{key}."))
            return f"{key} is a table, not a value; its settings are {members}"
        near = difflib.get_close_matches(key, self.types, n=1, cutoff=0.5)
        if not near:  # the leaf may be right and its table forgotten: port, bytes_max
            near = [name for name in self.types if name.rpartition(".")[2] == key.rpartition(".")[2]][:1]
        hint = f"; did you mean {near[0]}?" if near else f"; tables are {', '.join(self.tables)}"
        return f"there is no setting {key}{hint}"


class Sources:
    """What was given, read once. `notes` are what may be a mistake and is ignored."""

    def __init__(self, catalogue: Catalogue, config: Path | None, overrides: Sequence[str], env: Mapping[str, str]) -> None:
        self.values: dict[str, Value] = {}
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self._known = catalogue
        self._config = config
        self._text = ""
        for key, value, origin in (*self._of_file(), *self._of_env(env), *self._of_overrides(overrides)):
            if key in catalogue.types:
                self.values[key] = Value(value, origin)
            else:
                self._refuse(key, f"{self._place(origin, key)}: {catalogue.unknown(key)}")

    def origin(self, key: str) -> str:
        """Where the value of `key` comes from: a variable, the command line, file:line, or DEFAULT."""
        value = self.values.get(key)
        return DEFAULT if value is None else self._place(value.origin, key)

    def build(self) -> Any:
        """The settings, of what is right; what is not becomes a problem and keeps its default."""
        leaves: dict[str, Any] = {}
        tables: dict[str, dict[str, Any]] = {name: {} for name in self._known.tables}
        for key, given in self.values.items():
            try:
                value = msgspec.convert(given.value, self._known.types[key], dec_hook=_to_path)
            except msgspec.ValidationError as error:
                limit = str(error)[:1].lower() + str(error)[1:].replace("`", "")
                choices = allowed(self._known.kinds[key])
                told = f"expected one of {choices}" if _is_choice(self._known.kinds[key]) else f"{limit}; allowed: {choices}"
                self._refuse(key, f"{self.origin(key)}: {key} is {shown(key, given.value)}: {told}")
                continue
            table, dot, leaf = key.rpartition(".")
            (tables[table] if dot else leaves)[leaf] = value
        return self._known.whole(**leaves, **{name: self._known.tables[name](**given) for name, given in tables.items()})

    def refuse_together(self, key: str, other: str, text: str) -> None:
        """Two settings do not fit. `other`: the one whose origin is told where `key` was not given."""
        origin = self.origin(key)
        self._refuse(key, f"{self.origin(other) if origin == DEFAULT else origin}: {text}")

    def _refuse(self, key: str, text: str) -> None:
        self.problems.append(Problem(key, text))

    def _of_file(self) -> Iterator[tuple[str, Any, str]]:
        config = self._config
        if config is None:
            return
        try:
            self._text = config.read_text(encoding="utf-8")
            table = tomllib.loads(self._text)
        except FileNotFoundError:
            self._refuse("", f"config file {config} does not exist")
            return
        except (OSError, UnicodeDecodeError) as error:
            self._refuse("", f"config file {config} cannot be read: {error}")
            return
        except tomllib.TOMLDecodeError as error:
            self._refuse("", f"config file {config} is not TOML: {error}")
            return
        for name, value in table.items():
            if not isinstance(value, dict):
                yield name, value, str(config)
            elif name in self._known.tables:
                for key, leaf in value.items():
                    yield f"{name}.{key}", leaf, str(config)
            else:
                self._refuse(name, f"{self._place(str(config), name)}: {self._known.unknown(name)}")

    def _of_env(self, env: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
        for variable in sorted(env):
            if not variable.startswith(ENV_PREFIX):
                continue
            key = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            # An unknown WEIR_X without "__" may not be meant for us: Kubernetes itself sets WEIR_PORT and the like for a
            # service called weir, and WEIR_TRACEBACK is read elsewhere.
            if "." in key or key in self._known.types:
                yield key, self._parse(key, env[variable]), variable
            elif near := difflib.get_close_matches(key, [k for k in self._known.types if "." not in k], n=1, cutoff=NEAR):
                self.notes.append(f"{variable} is no setting and ignored; did you mean {variable_of(near[0])}?")

    def _of_overrides(self, overrides: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
        for override in overrides:
            key, equals, text = override.partition("=")
            key = key.strip()
            if equals:
                yield key, self._parse(key, text.strip()), COMMAND_LINE
            else:
                self._refuse(key, f"--set {override}: write it as key=value")

    def _parse(self, key: str, text: str) -> Any:
        """The value that `text` means for `key`: TOML where the setting is not text, else the text itself."""
        types = _types_of(self._known.kinds[key]) if key in self._known.kinds else ()
        if text == "" and type(None) in types:
            return None
        try:
            table = tomllib.loads(f"value = {text}")
        except tomllib.TOMLDecodeError:
            return text
        if len(table) != 1:  # a line break in the text began another key
            return text
        value = table["value"]
        return value if isinstance(value, str) or not (str in types or Path in types) else text

    def _place(self, origin: str, key: str) -> str:
        """`origin`, with the line of `key` if it is the file."""
        if self._config is None or origin != str(self._config):
            return origin
        line = line_of(self._text, key)
        return f"{origin}:{line}" if line else origin


def line_of(text: str, key: str) -> int:
    """The line of a valid TOML text at which `key` (a.b) is given, from 1; 0 if it is not found.

    tomllib tells no places. So lines that name the last part of the key are tried: it is given where the text up to there, or
    up to where the value ends, has it.
    """
    lines = text.splitlines()
    path = key.split(".")
    for at, line in enumerate(lines):
        if path[-1] not in line:
            continue
        for end in range(at + 1, min(at + VALUE_LINES_MAX, len(lines)) + 1):
            try:
                found: Any = tomllib.loads("\n".join(lines[:end]))
            except tomllib.TOMLDecodeError:  # inside of a value
                continue
            for part in path:
                found = found.get(part) if isinstance(found, dict) else None
            if found is not None:
                return at + 1
            break
    return 0


def variable_of(key: str) -> str:
    """The environment variable of a setting."""
    return ENV_PREFIX + key.upper().replace(".", "__")


def shown(key: str, value: Any) -> str:
    """`value` for a message: no secrets, not longer than a line."""
    if value is not None and _IS_SECRET.search(key):
        return MASK
    text = hide_passwords(repr(value))
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 3] + "..."


def hide_passwords(text: str) -> str:
    """`text` without the passwords of the URLs in it."""
    return _QUERY_PASSWORD.sub(rf"\1{MASK}", _URL_PASSWORD.sub(rf"\1:{MASK}@", text))


def masked(key: str, value: Any) -> Any:
    """`value`, or what may be shown of it."""
    if value is None or (_IS_SECRET.search(key) and value != ""):
        return None if value is None else MASK
    return hide_passwords(value) if isinstance(value, str) else str(value) if isinstance(value, Path) else value


def written(value: Any) -> str:
    """`value` as one writes it in TOML, text without its quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(json.dumps, value))}]" if isinstance(value, tuple) else str(value)


def allowed(kind: inspect.Type) -> str:
    """What a setting may be, in words."""
    match kind:
        case inspect.UnionType(types=members):
            said = [allowed(member) for member in members if not isinstance(member, inspect.NoneType)]
            return f"{' or '.join(said)}, or nothing"
        case inspect.LiteralType(values=values):
            return ", ".join(map(str, values))
        case inspect.BoolType():
            return "true, false"
        case inspect.IntType() | inspect.FloatType():
            return _range(kind)
        case inspect.StrType(pattern=str() as pattern):
            return f"text like {pattern}"
        case inspect.StrType():
            return "text"
        case inspect.CustomType():
            return "a path"
        case inspect.VarTupleType(item_type=item):
            return f"list of {allowed(item)}"
        case _:
            raise AssertionError(f"a setting of type {kind}")


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    word = "whole number" if isinstance(kind, inspect.IntType) else "number"
    low = f"{kind.ge:,}" if kind.ge is not None else f"above {kind.gt:,}" if kind.gt is not None else ""
    high = f"{kind.le:,}" if kind.le is not None else f"below {kind.lt:,}" if kind.lt is not None else ""
    if low and high:
        return f"{word}, {low} to {high}"
    return f"{word}, from {low} on" if low else f"{word}, up to {high}" if high else word


def _is_choice(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.LiteralType)


def _to_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value:
        return Path(value).expanduser()
    raise ValueError("Expected a path")


def _types_of(kind: inspect.Type) -> tuple[type, ...]:
    """Which of str, Path, None a setting accepts; the rest is read as TOML and needs no telling apart."""
    match kind:
        case inspect.UnionType(types=members):
            return tuple(found for member in members for found in _types_of(member))
        case inspect.StrType() | inspect.LiteralType():
            return (str,)
        case inspect.CustomType(cls=cls):
            return (cls,)
        case inspect.NoneType():
            return (type(None),)
        case _:
            return ()
