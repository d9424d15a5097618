"""A version's way to production and back: refusals change nothing, and two at once never mix."""

import json
import multiprocessing
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from megatron_af.release import aliases as alias_moves
from megatron_af.release.aliases import Move, MoveForbidden, MoveRefused, aliases, carry_out
from megatron_af.release.gates import GateConfig, Gates, Trials
from megatron_af.release.versions import PromotionRefused, Releases, UnknownVersion
from megatron_af.runs.digests import DigestMismatch, record_digest, recorded_digest
from megatron_af.tracking.store import experiment_id, open_client

MODEL = "audio-flamingo"
GATES = Gates(gates={"hears": GateConfig(metric="audio", min=50), "no_worse": GateConfig(score="correct", margin=0.01)})


def not_asked_for(*_: object) -> Any:
    raise AssertionError("no gate asks for it")


NO_TRIALS = Trials(load=not_asked_for, export=not_asked_for)


class Shop:
    """Releases of one store, with checkpoints and results to register."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.client = open_client(uri)
        self.folder = folder
        self.releases = Releases(self.client, MODEL, who="ada")
        self.run_id = self.client.create_run(experiment_id(self.client, "demo")).info.run_id

    def register(self, name: str, accuracy: int, **tags: str) -> str:
        """Register a checkpoint that answers ``accuracy`` percent of 200 questions."""
        checkpoint = self.folder / name
        checkpoint.mkdir()
        (checkpoint / "weights").write_text(name)
        results = self.folder / f"{name}-results"
        results.mkdir()
        (results / "hearing.json").write_text(json.dumps({"audio": accuracy}))
        lines = [json.dumps({"id": str(i), "correct": int(i % 100 < accuracy)}) for i in range(200)]
        (results / "answers.jsonl").write_text("\n".join(lines))
        return self.register_again(name, record_digest(checkpoint), **tags)

    def register_again(self, name: str, digest: str, **tags: str) -> str:
        checkpoint = self.folder / name
        return self.releases.register(
            checkpoint, {str(checkpoint): digest}, self.folder / f"{name}-results", self.run_id,
            source=f"{self.client.get_run(self.run_id).info.artifact_uri}/model", tags=tags,
        )  # fmt: skip

    def promote(self, version: str) -> None:
        self.releases.promote(self.releases.gate(version, GATES, NO_TRIALS), why="it hears better")

    def aliases(self) -> dict[str, str]:
        return aliases(self.client, MODEL)


@pytest.fixture
def shop(store: str, tmp_path: Path) -> Shop:
    return Shop(store, tmp_path)


def test_from_candidate_to_champion_and_back(shop: Shop) -> None:
    first = shop.register("one", 60, **{"digest.data/scenes": "sha256:d"})
    assert shop.aliases() == {"candidate": first}
    shop.promote("candidate")
    assert shop.aliases() == {"champion": first}

    second = shop.register("two", 70)
    shop.promote(second)
    assert shop.aliases() == {"champion": second, "previous-champion": first}
    tags = shop.releases.version("champion").tags
    assert tags["promoted.by"] == "ada" and tags["promoted.why"] == "it hears better"
    assert tags["promoted.over"] == first and tags["gates"] == "passed"
    assert tags["gate.hears"] == "passed: audio = 70"
    assert tags["checkpoint.uri"].endswith("/two") and tags["checkpoint.digest"].startswith("sha256:")
    assert tags["evaluation.audio"] == "70"
    report = shop.client.download_artifacts(shop.run_id, f"gates/version-{second}.json")
    assert json.loads(Path(report).read_text())["champion"] == first
    assert shop.releases.version(first).tags["digest.data/scenes"] == "sha256:d"

    assert shop.releases.rollback("answers too slowly") == (first, second)
    assert shop.aliases() == {"champion": first}
    assert shop.releases.version(second).tags["rolled_back.why"] == "answers too slowly"
    with pytest.raises(UnknownVersion, match="no previous-champion"):
        shop.releases.rollback("again")


def test_rollback_restores_what_was_before_the_promotion(shop: Shop) -> None:
    for name, accuracy in (("one", 60), ("two", 70), ("three", 80)):
        shop.promote(shop.register(name, accuracy))
    shop.releases.rollback("three misses speech")
    assert shop.aliases() == {"champion": "2", "previous-champion": "1"}


def test_a_rollback_past_a_version_that_was_deleted_is_whole(shop: Shop) -> None:
    for name, accuracy in (("one", 60), ("two", 70), ("three", 80)):
        shop.promote(shop.register(name, accuracy))
    shop.client.delete_model_version(MODEL, "1")
    assert shop.releases.rollback("three misses speech") == ("2", "3")
    assert shop.aliases() == {"champion": "2"}
    shop.promote("3")
    assert shop.aliases() == {"champion": "3", "previous-champion": "2"}


def test_no_rollback_goes_to_what_was_rolled_back(shop: Shop) -> None:
    for name in ("one", "two"):
        shop.promote(shop.register(name, 60))
    shop.promote("1")
    assert shop.releases.rollback("one is worse after all") == ("2", "1")
    assert shop.aliases() == {"champion": "2"}, "two was promoted over one, which was just taken back"

    shop.promote(shop.register("three", 60))
    shop.releases.rollback("three misses speech")
    assert shop.aliases() == {"champion": "2"}, "nor where that lies longer ago"


def test_a_refusal_says_which_gate_and_by_how_much_and_changes_nothing(shop: Shop) -> None:
    shop.promote(shop.register("one", 60))
    before = shop.aliases()
    worse = shop.register("two", 55)
    with pytest.raises(PromotionRefused, match=r"REFUSED  no_worse: correct: -0\.05 .* short by") as caught:
        shop.promote(worse)
    assert "passed   hears" in str(caught.value)
    assert shop.aliases() == before | {"candidate": worse}
    assert shop.releases.version(worse).tags["gates"] == "refused"
    assert "promoted.by" not in shop.releases.version(worse).tags


def test_a_changed_checkpoint_is_not_registered(shop: Shop) -> None:
    (shop.folder / "one").mkdir()
    (shop.folder / "one/weights").write_text("1")
    digest = record_digest(shop.folder / "one")
    (shop.folder / "one/weights").write_text("2")
    with pytest.raises(DigestMismatch, match=digest):
        shop.register_again("one", digest)
    assert shop.client.search_registered_models() == []


def test_classes_of_any_name_are_no_obstacle(shop: Shop) -> None:
    shop.register("one", 60)
    classes = {"order": {"labels": ["bell, then drum"], "counts": [[1, 0]], "recall": {"bell, then drum": 100.0}}}
    scores = {"überlagert": {"overall": {"audio": 70.0}, "skills": {"a, b": {"audio": 50.0}}, "classes": classes}}
    (shop.folder / "one-results/hearing.json").write_text(json.dumps(scores))
    version = shop.releases.version(shop.register_again("one", record_digest(shop.folder / "one")))
    assert version.tags["evaluation._berlagert/overall/audio"] == "70"
    assert [tag for tag in version.tags if "bell" in tag or "a_ b" in tag] == [], "these stand in the artifact"


def test_registering_twice_is_registering_once(shop: Shop) -> None:
    first = shop.register("one", 60)
    assert shop.register_again("one", recorded_digest(shop.folder / "one")) == first
    assert [str(version.version) for version in shop.releases.versions()] == [first]


def test_an_unknown_version_is_named_with_the_known_ones(shop: Shop) -> None:
    with pytest.raises(UnknownVersion, match="no registered model"):
        shop.releases.gate("candidate", GATES, NO_TRIALS)
    shop.register("one", 60)
    with pytest.raises(UnknownVersion, match="'7'; it has 1, candidate"):
        shop.releases.gate("7", GATES, NO_TRIALS)


def test_a_champion_that_changed_while_gates_were_judged_stops_the_promotion(shop: Shop) -> None:
    shop.promote(shop.register("one", 60))
    second, third = shop.register("two", 70), shop.register("three", 80)
    report = shop.releases.gate(second, GATES, NO_TRIALS)
    shop.promote(third)
    with pytest.raises(MoveRefused, match="decide again"):
        shop.releases.promote(report, why="late")
    assert shop.aliases() == {"champion": third, "previous-champion": "1"}


def test_promoting_the_champion_is_no_change(shop: Shop) -> None:
    first = shop.register("one", 60)
    shop.promote(first)
    shop.promote(first)
    assert shop.aliases() == {"champion": first}


def promote_in_process(uri: str, version: str, start: Barrier, outcome: "Queue[str]") -> None:
    releases = Releases(open_client(uri), MODEL, who=f"process of {version}")
    report = releases.gate(version, GATES, NO_TRIALS)
    start.wait(60)
    try:
        releases.promote(report, why="race")
        outcome.put(f"promoted {version}")
    except MoveRefused as refused:
        outcome.put(f"refused {refused}")


@pytest.mark.slow
def test_two_promotions_at_once_leave_no_mixed_state(shop: Shop, store: str) -> None:
    shop.promote(shop.register("one", 60))
    rivals = [shop.register("two", 70), shop.register("three", 70)]
    context = multiprocessing.get_context("spawn")
    start, outcome = context.Barrier(2), context.Queue()
    processes = [context.Process(target=promote_in_process, args=(store, v, start, outcome)) for v in rivals]
    try:
        for process in processes:
            process.start()
        outcomes = sorted(outcome.get(timeout=90) for _ in processes)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    assert [each.split()[0] for each in outcomes] == ["promoted", "refused"], outcomes
    winner = outcomes[0].split()[1]
    assert {k: v for k, v in shop.aliases().items() if k != "candidate"} == {
        "champion": winner,
        "previous-champion": "1",
    }
    assert [model.name for model in shop.client.search_registered_models()] == [MODEL]


class Interrupted(MlflowClient):
    """A client whose server goes away, or refuses, at the nth change that a move makes."""

    def __init__(self, client: MlflowClient, at: int, error: str) -> None:
        super().__init__(client.tracking_uri, client._registry_uri)
        self.left, self.error = at, error

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise MlflowException("the server says no", error_code=ErrorCode.Value(self.error))

    def set_model_version_tag(self, *args: object, **kwargs: object) -> None:
        self._count()
        super().set_model_version_tag(*args, **kwargs)

    def set_registered_model_alias(self, *args: object, **kwargs: object) -> None:
        self._count()
        super().set_registered_model_alias(*args, **kwargs)


@pytest.mark.parametrize("at", [0, 4, 5])
def test_a_move_that_was_interrupted_is_finished_by_the_next_command(
    shop: Shop, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.promote(shop.register("one", 60))
    report = shop.releases.gate(shop.register("two", 70), GATES, NO_TRIALS)
    broken = Releases(Interrupted(shop.client, at, "INTERNAL_ERROR"), MODEL, who="bob")
    with pytest.raises(MlflowException, match="the next command finishes it"):
        broken.promote(report, why="half")
    with pytest.raises(MoveRefused, match="by bob is under way"):
        shop.releases.rollback("too early")
    monkeypatch.setattr(alias_moves, "LEASE_SECONDS", 0.0)
    assert shop.releases.rollback("now") == ("1", "2"), "promoted first, then rolled back"
    assert shop.aliases() == {"champion": "1"}


class Paused(MlflowClient):
    """A client whose process stands still just before its first change, while others go on."""

    def __init__(self, client: MlflowClient, meanwhile: Callable[[], None]) -> None:
        super().__init__(client.tracking_uri, client._registry_uri)
        self.meanwhile: Callable[[], None] | None = meanwhile

    def set_model_version_tag(self, *args: object, **kwargs: object) -> None:
        if self.meanwhile:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        super().set_model_version_tag(*args, **kwargs)


def test_an_author_that_was_taken_for_gone_changes_nothing_more(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.promote(shop.register("one", 60))
    report = shop.releases.gate(shop.register("two", 70), GATES, NO_TRIALS)
    third = shop.register("three", 80)

    def meanwhile() -> None:
        monkeypatch.setattr(alias_moves, "LEASE_SECONDS", 0.0)
        shop.releases.rollback("two is finished, and taken back")
        shop.promote(third)

    paused = Releases(Paused(shop.client, meanwhile), MODEL, who="bob")
    with pytest.raises(MoveRefused, match="was taken over"):
        paused.promote(report, why="late")
    assert shop.aliases()["champion"] == third


def test_a_registry_that_refuses_the_user_is_left_as_it_was(shop: Shop) -> None:
    shop.promote(shop.register("one", 60))
    report = shop.releases.gate(shop.register("two", 70), GATES, NO_TRIALS)
    before = shop.aliases()
    reader = Releases(Interrupted(shop.client, 0, "PERMISSION_DENIED"), MODEL, who="eve")
    with pytest.raises(MoveForbidden, match="does not let eve change audio-flamingo; nothing is changed"):
        reader.promote(report, why="please")
    assert shop.aliases() == before
    shop.releases.promote(report, why="allowed")
    assert shop.aliases()["champion"] == "2"


def test_an_announcement_overtaken_by_other_changes_is_dropped(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        shop.register(name, 60)
    stale = Move(model=MODEL, what="promote 1", who="bob", before={"champion": ""}, after={"champion": "1"}, began=0.0)
    shop.client.create_registered_model(stale.announcement, tags={"move": json.dumps(stale.__dict__)})
    shop.client.set_registered_model_alias(MODEL, "champion", "2")
    carry_out(shop.client, Move(model=MODEL, what="x", who="ada", before={"champion": "2"}, after={"champion": "3"}))
    assert shop.aliases()["champion"] == "3"
