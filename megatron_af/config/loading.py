"""From YAML files and command-line overrides to a :class:`~megatron_af.config.Config`, and back.

    config = load_config("configs/demo.yaml", ["stage=align", "parallel.tensor=2"])
    config, unread = read_config("configs/demo.yaml", overrides)    # for a check that tells all problems at once
    text = to_yaml(config)      # the resolved run; loads to an equal Config

A file may name others by ``include: [model/af2_3b.yaml, curriculum/af2.yaml]``, looked for beside it and then in
``configs/``. They are merged in their order, the file's own keys come over them and the overrides over all; a list
replaces a list, sections merge key by key, and ``null`` takes an entry (a data set, a stage, a part of a blend) that
another file names out again. ``${a.b}`` takes the value of another key, ``${oc.env:NAME,default}`` one
of the environment.
"""

import dataclasses
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import IO, Any, Literal, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import KeyValidationError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from megatron_af.config import Config, ConfigError
from megatron_af.config.addresses import hidden, refuse_secrets
from megatron_af.config.errors import shown, suggestion
from megatron_af.config.keys import leaves, type_hints
from megatron_af.config.ranges import keep_in_range
from megatron_af.foreign import ForeignError, is_finite, no_file, opened

CONFIGS, COMMAND_LINE = Path(__file__).parents[2] / "configs", "command line"
DEEPEST = 100  # levels of a file
DEFINED_IN_FILES = ("curriculum", "data.datasets", "steps")
type Tree = dict[Any, Any]
"""A YAML file: nested mappings, lists and scalars."""
EXPECTED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A run's top file with its includes and ``a.b.c=value`` overrides.

    Raises:
        ConfigError: unreadable files; unknown and missing keys, wrong types, numbers out of range, all at once.
    """
    return read_values(Config, Path(path), overrides)


@dataclass(frozen=True, kw_only=True)
class Unread:
    """What a file says that could not be used, beside the configuration made of the rest."""

    problems: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    """Keys that have their defaults for want of a usable value."""

    def and_also(self, problems: Iterable[str]) -> list[str]:
        """Own problems, then those of the rest that do not merely follow from them."""
        return [*self.problems, *unexplained(problems, self.keys)]


def unexplained(problems: Iterable[str], keys: Iterable[str]) -> list[str]:
    """Those that name none of the keys (or anything below them), whose problems have been told already."""
    told = [re.compile(rf"(?<![\w.]){re.escape(key)}(?!\w)") for key in keys]
    return [problem for problem in problems if not any(key.search(problem) for key in told)]


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, Unread]:
    """:func:`load_config` for who goes on to check what could be read, and then reports all problems at once.

    Raises:
        ConfigError: files that are missing or no YAML; there is nothing to go on with.
    """
    return _read_tree(Config, Path(path), overrides)


def read_values[Schema](schema: type[Schema], path: Path, overrides: Sequence[str] = ()) -> Schema:
    """:func:`load_config` for the file of any tree of dataclasses."""
    values, unread = _read_tree(schema, path, overrides)
    if problems := unread.and_also(keep_in_range(values)[1].values()):
        raise ConfigError(f"{path} cannot be used", problems)
    return values


def _read_tree[Schema](schema: type[Schema], path: Path, overrides: Sequence[str]) -> tuple[Schema, Unread]:
    refuse_secrets(path, overrides)  # before a parser's message quotes them
    problems: list[str] = []
    layers = [*_read(path, (), problems), (COMMAND_LINE, _parse(overrides, problems))]
    if problems:
        raise ConfigError(f"{hidden(str(path))} cannot be read", [*map(hidden, problems)])
    defaults = _defaults(schema)
    first_source: dict[str, str] = dict.fromkeys(_keys(defaults), "default")
    last_source: dict[str, str] = {}
    for source, layer in layers:
        for key in _keys(layer):
            first_source.setdefault(key, source)
            last_source[key] = source
    merged = reduce(_merge, [defaults, *(layer for _, layer in layers)])
    tree: Any = merged
    if _refers(merged):  # else there is nothing to look up, which costs more than all the rest
        try:
            tree = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
        except OmegaConfBaseException as error:
            said = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
            problems.append(f"{getattr(error, 'full_key', '')}: {hidden(said)}")
    refuse_secrets(path, tree=tree)
    reader = _Reader(first_source, last_source, problems)
    values = reader.read(schema, tree, "")
    assert isinstance(values, schema)
    return values, Unread(problems=tuple(problems), keys=frozenset(reader.unread))


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML without includes."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def _read(path: Path, parents: tuple[Path, ...], problems: list[str]) -> list[tuple[str, Tree]]:
    """A file's layers, those of its includes first."""
    if path in parents:
        problems.append(f"{parents[-1]}: include {path} includes itself; remove it from one of the two")
        return []
    try:
        with opened(path) as file:
            _refuse_depth(file)
            file.seek(0)
            layer = OmegaConf.load(file)
    except FileNotFoundError:
        problems.append(f"{parents[-1]}: include {path.name}: no such file" if parents else f"{path}: no such file")
        return []
    except AssertionError:  # of the library, about a text in quotes
        layer = None
    except (ForeignError, IsADirectoryError):
        problems.append(f"{path}: expected a YAML file, got {no_file(path)}")
        return []
    except (OSError, YAMLError, ValueError, OmegaConfBaseException) as error:  # also a number of thousands of digits
        problems.append(f"{path}: cannot be read as YAML: {_place_and_problem(error)}")
        return []
    if not isinstance(layer, DictConfig):
        problems.append(f"{path}: expected keys and values at the top, got a list or a single value")
        return []
    tree = _plain(layer)
    includes = tree.pop("include", None) or []
    includes = includes if isinstance(includes, list) else [includes]
    layers = []
    for name in includes:
        if not isinstance(name, str) or not name or "\0" in name or "${" in name:
            problems.append(f"{path}: include: expected names of files, such as [model/af2_3b.yaml], got {shown(name)}")
            continue
        beside = path.parent / name
        included = beside if beside.exists() else CONFIGS / name
        if not included.exists():
            problems.append(f"{path}: include {name}: no such file in {path.parent or '.'} or {CONFIGS.name}/")
            continue
        layers += _read(included, (*parents, path), problems)
    return [*layers, (str(path), tree)]


def _place_and_problem(error: Exception) -> str:
    """What a parser found and where, without its names for what it reads."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if isinstance(error, KeyValidationError):
        return f"{error.full_key}: a key must be text or a number; put it in quotes"
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {str(error).splitlines()[0]}"
    if isinstance(error, ValueError) and "integer string" in str(error):
        return "a number has thousands of digits"
    return " ".join(str(error).split())


def _refuse_depth(text: IO[bytes] | str) -> None:
    """The library builds values in C, which knows no end of depth but the process's; marks are read one by one."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise YAMLError(f"it is nested more than {DEEPEST} levels deep")


def _parse(overrides: Sequence[str], problems: list[str]) -> Tree:
    layer = OmegaConf.create()
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            problems.append(f"{override} ({COMMAND_LINE}): expected key=value, for example stage=align")
            continue
        try:
            _refuse_depth(value)
            layer.merge_with_dotlist([override])
        except (YAMLError, ValueError, LookupError, OmegaConfBaseException) as error:
            ours = type(error) is YAMLError
            why = str(error) if ours else "its value is no YAML, or names no key in ${…}; in double quotes it is text"
            problems.append(f"{override} ({COMMAND_LINE}): {why}")
    return _plain(layer)


def _plain(layer: DictConfig) -> Tree:
    tree = OmegaConf.to_container(layer, resolve=False)
    assert isinstance(tree, dict)
    return tree


def _defaults(schema: Any) -> Tree:
    """Defaults of the whole tree, so that a file can change one entry of a section that has some by default."""
    required = {field.name: "???" for field in dataclasses.fields(schema) if _is_required(field)}
    return dataclasses.asdict(schema(**required))


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _merge(under: Tree, over: Tree) -> Tree:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(under.get(name), dict)
        merged[name] = _merge(under[name], value) if both else value
    return merged


def _refers(value: Any) -> bool:
    """Whether something in a tree stands for another key, ``${a.b}``."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (isinstance(value, str) and "${" in value) or any(map(_refers, inner))


def _keys(tree: Tree, prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


class _Reader:
    """Builds the dataclasses out of plain containers and notes what does not fit."""

    def __init__(self, first_source: Mapping[str, str], last_source: Mapping[str, str], problems: list[str]) -> None:
        self._first_source = first_source
        self._last_source = last_source
        self._problems = problems
        self.unread: set[str] = set()
        """Keys that were not read, and those that were perhaps meant by unknown ones."""

    def _report(self, key: str, message: str) -> Any:
        self.unread.add(key)
        place = key
        while place and place not in self._last_source:
            place = place.rpartition(".")[0]
        self._problems.append(f"{key} ({self._last_source[place]}): {message}" if place else f"{key}: {message}")
        return MISSING

    def read(self, kind: Any, value: Any, key: str) -> Any:
        """``value`` as ``kind``; reports and returns MISSING where it is not one."""
        origin, options = get_origin(kind), get_args(kind)
        if isinstance(value, str) and "${" in value:
            self.unread.add(key)  # what it stands for was not found, which has been reported
            return MISSING
        if value == "???":
            return self._report(key, f"is required; set {key} to {_expected(kind)}")
        if origin in (Union, types.UnionType):
            (inner,) = (option for option in options if option is not type(None))
            return None if value is None else self.read(inner, value, key)
        if kind is Any:
            return value
        if origin is Literal:
            if value not in options:
                known = [str(option) for option in options]
                return self._report(key, f"expected {' or '.join(known)}, got {shown(value)}")
            return value
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            return self._read_section(kind, value, key)
        if origin is dict and isinstance(value, dict):
            return self._read_mapping(options[1], value, key)
        if origin is tuple and isinstance(value, list | tuple):  # a default is still a tuple
            items = (self.read(options[0], item, f"{key}[{i}]") for i, item in enumerate(value))
            return tuple(item for item in items if item is not MISSING)
        if kind in (float, int) and isinstance(value, int) and not isinstance(value, bool) and not is_finite(value):
            return self._report(key, f"expected {_expected(kind)}, got one of more digits than can be computed with")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is str and value is None:
            return ""  # "key=" on the command line, or nothing behind the colon
        if kind in EXPECTED and type(value) is kind:
            return value
        hint = f"; write it as [{value}]" if origin is tuple and isinstance(value, str) else ""
        if kind is str and isinstance(value, int | float):
            hint = "; in quotes it is text"
        return self._report(key, f"expected {_expected(kind)}, got {shown(value)}{hint}")

    def _read_section(self, kind: Any, value: dict[Any, Any], key: str) -> Any:
        prefix = f"{key}." if key else ""
        hints = type_hints(kind)
        values = {}
        for name, inner in value.items():
            if name in hints:
                values[name] = self.read(hints[name], inner, f"{prefix}{name}")
            else:
                meant, hint = _suggest_key(str(name), list(hints), prefix)
                self._report(f"{prefix}{name}", f"unknown key{hint}")
                self.unread.update(meant)
        for field in dataclasses.fields(kind):
            if _is_required(field):
                if field.name not in value:
                    self._report(f"{prefix}{field.name}", f"is required; set it to {_expected(hints[field.name])}")
                if values.get(field.name, MISSING) is MISSING:
                    values[field.name] = _placeholder(hints[field.name])
        return kind(**{name: inner for name, inner in values.items() if inner is not MISSING})

    def _read_mapping(self, kind: Any, value: dict[Any, Any], key: str) -> dict[str, Any]:
        entries = {}
        there = [str(name) for name, inner in value.items() if inner is not None]
        for name, inner in value.items():
            entry = f"{key}.{name}"
            if inner is None and kind is not Any:
                if self._first_source.get(entry) == self._last_source.get(entry):
                    hint = suggestion(str(name), there)
                    self._report(entry, f"null takes out what another file names, and none names this{hint}")
                continue
            # Files define stages and data sets; an override that names a new one is a slip of the pen.
            if key in DEFINED_IN_FILES and self._first_source.get(entry) == COMMAND_LINE:
                known = [other for other in there if self._first_source.get(f"{key}.{other}") != COMMAND_LINE]
                self._report(entry, f"not in {key}{suggestion(str(name), known)}")
                continue
            if not isinstance(name, str):
                self._report(entry, f"expected text as the key, got {shown(name)}; put it in quotes")
                continue
            if (item := self.read(kind, inner, entry)) is not MISSING:
                entries[name] = item
        return entries


def _suggest_key(name: str, siblings: list[str], prefix: str) -> tuple[list[str], str]:
    """A close name in the same section, or else the same name in another one: the keys, and the words."""
    close = [f"{prefix}{match}" for match in get_close_matches(name, siblings, n=1, cutoff=0.6)]
    meant = close or [key for key, *_ in leaves(Config) if key.rsplit(".", 1)[-1] == name]
    if meant:
        return meant, f"; did you mean {' or '.join(meant)}?"
    return [], f"; known here: {', '.join(siblings)}"


def _placeholder(kind: Any) -> Any:
    """Stands for a required value that is missing, so that the rest can be checked."""
    return get_args(kind)[0] if get_origin(kind) is Literal else {int: 1, float: 1.0, bool: False}.get(kind, "missing")


def _expected(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "a list"
    return EXPECTED.get(kind, "keys and values")
