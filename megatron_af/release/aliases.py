"""Aliases of a registered model that move together, or not at all.

    carry_out(client, Move(model="af2", what="promote 7", who="ada", before={"champion": "6"}, after={"champion": "7"}))

MLflow sets one alias per request and knows no transactions. So a move is announced first, whole, as a registered model
of its own name (``af2.move``), which a server makes for one caller only; then it is carried out, and the announcement
removed. Whoever finds one has to wait; one that its author left behind is finished by whoever comes next. An author
that was paused until then finds the announcement gone, or one of another token, and makes no further change.
"""

import json
import time
import uuid
from dataclasses import asdict, dataclass, field

import megatron_af.tracking.store  # noqa: F401  (before mlflow: it sets its environment)

from mlflow import MlflowClient  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip

LEASE_SECONDS = 60.0
"""A move takes a few requests; after this time its author is taken to be gone."""


class MoveRefused(RuntimeError):
    """The move was not made, and nothing is changed."""

    exit_code = 1


class MoveForbidden(MoveRefused):
    """The registry does not let this user move aliases; trying again is no use."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Move:
    """What changes. Carrying it out twice changes nothing more."""

    model: str
    what: str
    who: str
    before: dict[str, str]
    """Alias -> version as the move was decided on; empty: none."""
    after: dict[str, str]
    """Alias -> version, in the order they are set; empty: the alias is removed."""
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    """Version -> tags."""
    began: float = field(default_factory=time.time)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells this announcement from every other one."""

    @property
    def announcement(self) -> str:
        return f"{self.model}.move"


def aliases(client: MlflowClient, model: str) -> dict[str, str]:
    """Alias -> version number, as text."""
    return {alias: str(version) for alias, version in client.get_registered_model(model).aliases.items()}


def carry_out(client: MlflowClient, move: Move) -> None:
    """Make the move, with nobody else moving an alias of the model meanwhile.

    Raises:
        MoveRefused: another one is under way, the aliases are not as they were when this one was decided, or the
            server does not let this user; nothing is changed.
    """
    finish_interrupted(client, move.model)
    try:
        client.create_registered_model(move.announcement, tags={"move": json.dumps(asdict(move))})
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS":
            raise MoveRefused(f"somebody else was faster by a moment; look at {move.model} and decide again") from None
        raise _refusal(move, error) from error
    now = aliases(client, move.model)
    if any(now.get(alias, "") != version for alias, version in move.before.items()):
        client.delete_registered_model(move.announcement)
        raise MoveRefused(f"{move.what}: decided on {move.before}, but the aliases are {now} by now; decide again")
    if gone := _gone(client, move):
        client.delete_registered_model(move.announcement)
        raise MoveRefused(f"{move.what}: version {', '.join(gone)} was deleted meanwhile; decide again")
    try:
        _apply(client, move)
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":  # of the first request: the user may write all of it or nothing
            client.delete_registered_model(move.announcement)
            raise _refusal(move, error) from error
        raise MlflowException(f"{move.what} was interrupted; the next command finishes it: {error}") from error
    client.delete_registered_model(move.announcement)


def finish_interrupted(client: MlflowClient, model: str) -> Move | None:
    """Carry out what its author announced and did not finish, if there is such a move.

    Raises ``MoveRefused`` while the author may still be at it.
    """
    try:
        announced = client.get_registered_model(f"{model}.move")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    move = Move(**json.loads(announced.tags["move"]))
    age = abs(time.time() - move.began)  # by another machine's clock, and either may jump
    if age < LEASE_SECONDS:
        raise MoveRefused(
            f"{move.what} by {move.who} is under way since {age:.0f} s; try again in {LEASE_SECONDS - age:.0f} s"
        )
    now = aliases(client, model)
    if all(now.get(alias, "") in (move.before.get(alias, ""), version) for alias, version in move.after.items()):
        _apply(client, move)
    client.delete_registered_model(move.announcement)
    return move


def _apply(client: MlflowClient, move: Move) -> None:
    """A version that was deleted since the move began loses its aliases, as it would have behind the move."""
    gone = _gone(client, move)
    for version in move.tags.keys() - gone:
        for key, value in move.tags[version].items():
            client.set_model_version_tag(move.model, version, key, value)
    present = aliases(client, move.model)
    for alias, version in move.after.items():
        _ensure_announced(client, move)
        if version and version not in gone:
            client.set_registered_model_alias(move.model, alias, version)
        elif alias in present:
            client.delete_registered_model_alias(move.model, alias)


def _gone(client: MlflowClient, move: Move) -> list[str]:
    """Versions that a move is about and the registry does not have any more."""
    gone = []
    for version in sorted({*move.after.values(), *move.tags} - {""}):
        try:
            client.get_model_version(move.model, version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            gone.append(version)
    return gone


def _ensure_announced(client: MlflowClient, move: Move) -> None:
    """Raises ``MoveRefused`` where this move is not the one under way any more: somebody took its author for gone.

    Between this look and the change behind it lies one request: MLflow has no condition to set an alias on.
    """
    try:
        announced = json.loads(client.get_registered_model(move.announcement).tags["move"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        announced = {}
    if announced.get("token") != move.token:
        raise MoveRefused(
            f"{move.what} took longer than {LEASE_SECONDS:.0f} s and was taken over; look at {move.model} and decide "
            "again"
        )


def _refusal(move: Move, error: MlflowException) -> Exception:
    if error.error_code == "PERMISSION_DENIED":
        return MoveForbidden(
            f"{move.what}: the registry does not let {move.who} change {move.model}; nothing is changed. "
            "Ask for EDIT permission on the model, or set MLFLOW_TRACKING_USERNAME and _PASSWORD to a user who has it"
        )
    return error
