"""Aliases move together or not at all, on a registry in memory that can fail at any request."""

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    PERMISSION_DENIED,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
)

from megatron_af.release.aliases import (
    LEASE_SECONDS,
    Move,
    MoveForbidden,
    MoveRefused,
    aliases,
    carry_out,
    finish_interrupted,
)


class Registry:
    """Registered models by name, each with aliases, tags and its versions' tags; ``fails`` ends the n-th write."""

    def __init__(self, **present: str) -> None:
        self.models: dict[str, Any] = {"m": SimpleNamespace(aliases=dict(present), tags={})}
        self.version_tags: dict[tuple[str, str], str] = {}
        self.deleted: set[str] = set()
        self.writes, self.fails, self.code = 0, 0, INTERNAL_ERROR

    def _write(self) -> None:
        self.writes += 1
        if self.writes == self.fails:
            raise MlflowException("down", self.code)

    def get_registered_model(self, name: str) -> Any:
        if name not in self.models:
            raise MlflowException("none", RESOURCE_DOES_NOT_EXIST)
        return self.models[name]

    def create_registered_model(self, name: str, tags: dict[str, str]) -> None:
        self._write()
        if name in self.models:
            raise MlflowException("there", RESOURCE_ALREADY_EXISTS)
        self.models[name] = SimpleNamespace(aliases={}, tags=tags)

    def delete_registered_model(self, name: str) -> None:
        del self.models[name]

    def get_model_version(self, name: str, version: str) -> None:
        if version in self.deleted:
            raise MlflowException("none", RESOURCE_DOES_NOT_EXIST)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self._write()
        self.get_model_version(name, version)
        self.models[name].aliases[alias] = version

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self._write()
        del self.models[name].aliases[alias]

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self._write()
        self.get_model_version(name, version)
        self.version_tags[version, key] = value


BEFORE, AFTER = {"champion": "6", "previous": "", "candidate": "7"}, {"previous": "6", "champion": "7", "candidate": ""}


def move(**changes: Any) -> Move:
    values = {"model": "m", "what": "promote 7", "who": "ada", "before": BEFORE, "after": AFTER}
    return Move(**values | {"tags": {"7": {"promoted": "yes"}}} | changes)


def test_a_move_is_whole_and_leaves_no_announcement() -> None:
    registry: Any = Registry(champion="6", candidate="7", other="1")
    carry_out(registry, move())
    assert aliases(registry, "m") == {"champion": "7", "previous": "6", "other": "1"}
    assert registry.version_tags == {("7", "promoted"): "yes"} and set(registry.models) == {"m"}
    assert finish_interrupted(registry, "m") is None


@pytest.mark.parametrize("write", range(1, 6))
def test_wherever_a_move_breaks_off_it_is_whole_or_finished_by_the_next(write: int) -> None:
    registry: Any = Registry(champion="6", candidate="7")
    registry.fails = write
    with pytest.raises(MlflowException):
        carry_out(registry, move(began=time.time() - LEASE_SECONDS - 1))
    registry.fails = 0
    finished = finish_interrupted(registry, "m")
    assert (finished is None) == (write == 1)
    whole = {"champion": "7", "previous": "6"}
    assert aliases(registry, "m") == (whole if finished else {"champion": "6", "candidate": "7"})
    assert set(registry.models) == {"m"}


def test_aliases_that_changed_since_the_decision_refuse_the_move() -> None:
    registry: Any = Registry(champion="5", candidate="7")
    with pytest.raises(MoveRefused, match=r"promote 7: decided on .*'champion': '6'.*'champion': '5'.*decide again"):
        carry_out(registry, move())
    assert aliases(registry, "m") == {"champion": "5", "candidate": "7"} and set(registry.models) == {"m"}


def test_a_move_to_a_version_that_was_deleted_is_refused() -> None:
    registry: Any = Registry(champion="6", candidate="7")
    registry.deleted = {"7"}
    with pytest.raises(MoveRefused, match="promote 7: version 7 was deleted meanwhile; decide again"):
        carry_out(registry, move())
    assert aliases(registry, "m") == {"champion": "6", "candidate": "7"} and set(registry.models) == {"m"}


@pytest.mark.parametrize("write", range(2, 6))
def test_an_interrupted_move_ends_although_a_version_of_it_was_deleted_since(write: int) -> None:
    registry: Any = Registry(champion="6", candidate="7", previous="5")
    old = {"before": BEFORE | {"previous": "5"}, "began": time.time() - LEASE_SECONDS - 1}
    registry.fails = write
    with pytest.raises(MlflowException):
        carry_out(registry, move(**old))
    registry.fails, registry.deleted = 0, {"6"}
    assert finish_interrupted(registry, "m") is not None
    assert aliases(registry, "m") == {"champion": "7"} and set(registry.models) == {"m"}


def test_a_move_under_way_is_waited_for() -> None:
    registry: Any = Registry(champion="6", candidate="7")
    registry.fails = 3
    with pytest.raises(MlflowException, match="promote 7 was interrupted; the next command finishes it"):
        carry_out(registry, move())
    with pytest.raises(MoveRefused, match=r"promote 7 by ada is under way since \d+ s; try again in \d+ s"):
        carry_out(registry, move(what="promote 8"))


def test_an_old_announcement_that_was_overtaken_changes_nothing() -> None:
    registry: Any = Registry(champion="9", candidate="7")
    announced = {"move": json.dumps(move(began=0.0).__dict__)}
    registry.models["m.move"] = SimpleNamespace(aliases={}, tags=announced)
    assert finish_interrupted(registry, "m") is not None
    assert aliases(registry, "m") == {"champion": "9", "candidate": "7"} and set(registry.models) == {"m"}


@pytest.mark.parametrize("write", [1, 2])
def test_a_user_without_the_right_changes_nothing_and_is_told_what_to_ask_for(write: int) -> None:
    registry: Any = Registry(champion="6", candidate="7")
    registry.fails, registry.code = write, PERMISSION_DENIED
    with pytest.raises(MoveForbidden, match=r"does not let ada change m; nothing is changed\. Ask for EDIT"):
        carry_out(registry, move())
    assert aliases(registry, "m") == {"champion": "6", "candidate": "7"} and set(registry.models) == {"m"}


def test_whoever_is_slower_by_a_moment_decides_again(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Any = Registry(champion="6", candidate="7")

    def first(name: str, tags: dict[str, str]) -> None:
        raise MlflowException("there", RESOURCE_ALREADY_EXISTS)

    monkeypatch.setattr(registry, "create_registered_model", first)
    with pytest.raises(MoveRefused, match="somebody else was faster by a moment"):
        carry_out(registry, move())
