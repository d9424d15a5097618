"""Addresses that hold a password are refused where they come in: what is read here is written and printed all over.

    refuse_secrets(path, overrides, tree)           # a file's values and the environment, before anything is done
    uri = from_environment("MLFLOW_TRACKING_URI")
    print(hidden(message))                          # what may quote what was typed

A password is what stands behind a colon before ``@`` (``http://user:password@host``), or the value of a parameter whose
name says that it is one (``?api_key=…``).
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from megatron_af.config.errors import ConfigError

VARIABLES = ("MLFLOW_TRACKING_URI", "KF_PIPELINES_ENDPOINT")
"""The environment's addresses that are read."""
_WHOLE = re.compile(r"\s*[A-Za-z0-9+.-]+:/{1,2}")
"""Also with one slash: a slip of the pen, and what becomes of an address that is taken for a path."""
_WITHIN = re.compile(r":/{1,2}(?=(\S*))")
_USER = re.compile(r"(:/{1,2})\S.*@", re.DOTALL)
_PARAMETER = re.compile(r"[?&#;]([^=?&#;\s]+)=([^&#;\s'\"]+)")
_SAYS_SECRET = re.compile(
    r"(?i:secret|passw(or)?d|passphrase|token(?!s)|signature|credential|(api|access|account)[-_.]?key)"
    r"|(?:^|[-_.])(?i:key|sig|auth|pass|pwd)$|(?<=[a-z])(Key|Sig)$"
)
_DATABASES = ("postgres", "mysql", "mariadb", "mssql", "oracle")


def refuse_secrets(place: str | Path, overrides: Sequence[str] = (), tree: Any = None) -> None:
    """
    Args:
        place: the file that is read, to be named.
        tree: what was made of it: nested mappings, lists and values.

    Raises:
        ConfigError: addresses that hold a password, of the environment's too; their keys, and never what they hold.
    """
    problems = {name: _told(name, os.environ[name]) for name in VARIABLES if holds_secret(os.environ.get(name, ""))}
    for override in overrides:
        key, _, value = override.partition("=")
        if holds_secret(key) or holds_secret(value):
            problems[hidden(key)] = _told(f"{hidden(key)} (command line)", value)
    for key, value in _texts(tree, ""):
        if holds_secret(key) or holds_secret(value):
            problems[hidden(key)] = _told(hidden(key), value)
    if problems:
        raise ConfigError(f"{hidden(str(place))} cannot be used", list(problems.values()))


def from_environment(name: str) -> str:
    """An address of the environment, one of `VARIABLES`; empty where it is not set.

    Raises:
        ConfigError: it holds a password.
    """
    address = os.environ.get(name, "")
    if holds_secret(address):
        raise ConfigError(_told(name, address))
    return address


def holds_secret(text: str) -> bool:
    """Whether an address in it holds a password."""
    if ":/" not in text:
        return False
    rests = [found[1] for found in _WITHIN.finditer(text)]  # in the middle of a text, an address ends with its word
    if whole := _WHOLE.match(text):
        rests.append(text[whole.end() :])
    for rest in rests:
        host = re.split(r"[/?#]", rest, maxsplit=1)[0]
        user, at, _ = host.rpartition("@")
        if at and ":" in user:
            return True
        # A password of which a character should have been written as %2F: no port stands where it begins.
        port = re.sub(r"^\[[^]]*\]", "", host).partition(":")[2]
        if not at and port and not port.isdecimal() and "@" in rest:
            return True
    return any(_SAYS_SECRET.search(unquote(name)) for name, _ in _PARAMETER.findall(text))


def hidden(text: str) -> str:
    """A text without the users and passwords of the addresses in it; of an address with such, at times without more."""

    def parameter(found: re.Match[str]) -> str:
        said = _SAYS_SECRET.search(unquote(found[1]))
        return f"{found[0][0]}{found[1]}=…" if said else found[0]

    return _PARAMETER.sub(parameter, _USER.sub(r"\1…@", text)) if ":/" in text else text


def _told(key: str, address: str) -> str:
    return f"{key}: holds a password, which would be written and printed with it; {_where(key, address)}"


def _where(key: str, address: str) -> str:
    scheme = address.partition(":")[0].lower()
    if scheme.startswith(_DATABASES):
        return "leave it out, and put it into PGPASSWORD or ~/.pgpass, or the file of logins of your database"
    if "tracking" in key.lower():
        return "leave it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if "pipelines" in key.lower():
        return "leave it out, and set AF_PIPELINES_TOKEN"
    if "endpoint" in key.lower():
        return "leave it out, and set OPENAI_API_KEY, or AF_PIPELINES_TOKEN for a server of Kubeflow Pipelines"
    return "leave it out, and put it into the environment or the files that the store itself reads (~/.config/fsspec)"


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Key and text of every value of a tree; a value that is no text counts for its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _texts(inner, f"{key}[{i}]")
    else:
        yield key, value if isinstance(value, str) else ""
