"""Versions of a model on their way to production.

    releases = Releases(open_client(uri), "audio-flamingo-demo", who="ada")
    version = releases.register(checkpoint, results_folder, run_id, source)
    report = releases.gate(version, gates, trials)
    releases.promote(version, report, why="hears better")
    releases.rollback(why="answers too slowly")

Aliases: ``candidate`` (registered last), ``champion`` (in production), ``previous-champion`` (what rollback restores).
"""

import datetime
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_af.release.aliases import Move, aliases, carry_out, finish_interrupted
from megatron_af.release.gates import Gates, Trials, Verdict, judge
from megatron_af.runs.digests import digest_value, verify_digest
from megatron_af.runs.results import Results, result_files
from megatron_af.tracking.spool import metric_name

from mlflow import MlflowClient  # isort: skip
from mlflow.entities.model_registry import ModelVersion  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous-champion"
EVALUATION = "evaluation"
"""Artifact folder of a version's results."""


class UnknownVersion(LookupError):
    """A model, version or alias that the registry does not have."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the gates said of a version, against the champion of that moment."""

    version: str
    champion: str
    """Empty where there was none."""
    verdicts: list[Verdict]
    who: str
    when: str

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)

    def text(self) -> str:
        lines = [f"version {self.version} against {f'champion {self.champion}' if self.champion else 'no champion'}:"]
        lines += [f"  {'passed ' if v.passed else 'REFUSED'}  {v.gate}: {v.finding}" for v in self.verdicts]
        return "\n".join(lines)


class PromotionRefused(RuntimeError):
    """A version that does not pass its gates; ``report`` says which and by how much."""

    exit_code = 42

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(report.text())


class Releases:
    """The registered versions of one model."""

    def __init__(self, client: MlflowClient, model: str, who: str) -> None:
        self.client, self.model, self.who = client, model, who

    def register(
        self,
        checkpoint: Path,
        digests: Mapping[str, str],
        results: Path,
        run_id: str,
        source: str,
        tags: Mapping[str, str],
        weights: str = "",
    ) -> str:
        """Make the checkpoint a version and the candidate; the version's number.

        Registering the same checkpoint with the same evaluation again gives the version it has.

        Args:
            digests: path of every checkpoint folder that holds weights of the model -> its digest.
            results: folder of the evaluation (``runs/results.py``); it may be empty, and then no gate will pass.
            run_id: run that the version belongs to and that gets the evaluation as an artifact.
            source: what MLflow loads: ``models:/…``, or a folder in the run's artifacts.
            tags: lineage, in the words of ``runs/identity.py``.
            weights: digest of the stage's checkpoint that the evaluation has to be of.

        Raises:
            DigestMismatch: files are not the ones that were recorded; nothing is registered.
            BadResults: the evaluation is of other weights; nothing is registered.
        """
        for folder, digest in digests.items():
            verify_digest(Path(folder), digest)
        found, identity = Results.load(results, weights), _identity(digests, results)
        known = self.registered(digests, results)
        version = str(known.version) if known else ""
        if not version:
            for file in result_files(results):
                self.client.log_artifact(run_id, str(file), f"{EVALUATION}/{identity[7:19]}")
            self._make_model()
            # The last request, and one: a version is there with all its tags, or not at all.
            made = self.client.create_model_version(
                self.model,
                source,
                run_id,
                tags={
                    **tags,
                    "identity": identity,
                    "weights.digest": weights,
                    "checkpoint.uri": checkpoint.absolute().as_uri(),
                    "checkpoint.digest": digests[str(checkpoint)],
                    "registered.by": self.who,
                    **{f"evaluation.{metric_name(n)}": f"{v:g}" for n, v in _totals(found)},
                },
            )
            version = str(made.version)
        self.client.set_registered_model_alias(self.model, CANDIDATE, version)
        return version

    def registered(self, digests: Mapping[str, str], results: Path) -> ModelVersion | None:
        """The version that these files and this evaluation have already."""
        identity = _identity(digests, results)
        return next((version for version in self.versions() if version.tags.get("identity") == identity), None)

    def version(self, name: str) -> ModelVersion:
        """A version by number or alias."""
        try:
            if name.isdigit():
                return self.client.get_model_version(self.model, name)
            return self.client.get_model_version_by_alias(self.model, name)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            known = ", ".join([*(str(v.version) for v in self.versions()), *self._aliases()]) or "nothing"
            raise UnknownVersion(f"{self.model} has no version or alias {name!r}; it has {known}") from None

    def versions(self) -> list[ModelVersion]:
        """All versions, the newest first."""
        found = self.client.search_model_versions(f"name = '{self.model}'")
        return sorted(found, key=lambda version: -int(version.version))

    def gate(self, name: str, gates: Gates, trials: Trials) -> Report:
        """Judge a version against the present champion and write the report to the version and its run."""
        version = self.version(name)
        number, champion = str(version.version), self._aliases().get(CHAMPION, "")
        theirs = self._results(self.version(champion)) if champion and champion != number else None
        verdicts = judge(gates, self._results(version), theirs, trials)
        report = Report(version=number, champion=champion, verdicts=verdicts, who=self.who, when=_now())
        self.client.log_text(version.run_id, json.dumps(asdict(report), indent=2), f"gates/version-{number}.json")
        tags = {"gates": "passed" if report.passed else "refused", "gates.when": report.when, "gates.by": self.who}
        for verdict in verdicts:
            tags[f"gate.{verdict.gate}"] = f"{'passed' if verdict.passed else 'refused'}: {verdict.finding}"
        for key, value in tags.items():
            self.client.set_model_version_tag(self.model, number, key, value)
        return report

    def promote(self, report: Report, why: str) -> None:
        """Make the version that passed its gates the champion.

        Raises:
            PromotionRefused: a gate did not pass.
            MoveRefused: another promotion is under way, or the champion is not the one the gates compared with.
        """
        if not report.passed:
            raise PromotionRefused(report)
        if report.version == report.champion:
            return
        now = self._aliases()
        no_candidate = {CANDIDATE: ""} if now.get(CANDIDATE) == report.version else {}
        tags = {
            "promoted.by": self.who,
            "promoted.when": _now(),
            "promoted.why": why[:1000],
            "promoted.over": report.champion or "none",
        }
        carry_out(
            self.client,
            Move(
                model=self.model,
                what=f"promote {report.version}",
                who=self.who,
                before={name: now.get(name, "") for name in (PREVIOUS, *no_candidate)} | {CHAMPION: report.champion},
                after={PREVIOUS: report.champion, CHAMPION: report.version, **no_candidate},
                tags={report.version: tags},
            ),
        )

    def rollback(self, why: str) -> tuple[str, str]:
        """Restore the previous champion.

        Returns:
            The version that is champion again, and the one that was.

        Raises:
            UnknownVersion: there is no previous champion.
        """
        finish_interrupted(self.client, self.model)
        now = self._aliases()
        bad, good = now.get(CHAMPION, ""), now.get(PREVIOUS, "")
        if not good:
            raise UnknownVersion(f"{self.model} has no {PREVIOUS} to go back to; promote another version instead")
        carry_out(
            self.client,
            Move(
                model=self.model,
                what=f"roll back to {good}",
                who=self.who,
                before={CHAMPION: bad, PREVIOUS: good},
                after={CHAMPION: good, PREVIOUS: self._before(good, bad)},
                tags={bad: {"rolled_back.by": self.who, "rolled_back.when": _now(), "rolled_back.why": why[:1000]}},
            ),
        )
        return good, bad

    def _before(self, good: str, bad: str) -> str:
        """The champion that ``good`` was promoted over; empty where that was deleted, or went back itself since."""
        over = self.version(good).tags.get("promoted.over", "none")
        before = next((version for version in self.versions() if str(version.version) == over), None)
        if before is None or over == bad:
            return ""
        back, promoted = (before.tags.get(f"{how}.when", "") for how in ("rolled_back", "promoted"))
        return "" if back and back >= promoted else over

    def _results(self, version: ModelVersion) -> Results:
        place = f"{EVALUATION}/{version.tags.get('identity', 'sha256:unknown')[7:19]}"
        if not version.run_id or not self.client.list_artifacts(version.run_id, place):  # others register without runs
            return Results(metrics={})
        with tempfile.TemporaryDirectory() as folder:
            downloaded = Path(self.client.download_artifacts(version.run_id, place, folder))
            return Results.load(downloaded, version.tags.get("weights.digest", ""))

    def _make_model(self) -> None:
        try:
            self.client.create_registered_model(self.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _aliases(self) -> dict[str, str]:
        try:
            return aliases(self.client, self.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UnknownVersion(f"there is no registered model {self.model}; register a version first") from None


def _totals(results: Results) -> Iterator[tuple[str, float]]:
    """Numbers to look at beside a version; the artifact has all, by skill and by class, whose names may be anything."""
    for name, value in results.metrics.items():
        if "/skills/" not in name and "/classes/" not in name:
            yield name, value


def _identity(digests: Mapping[str, str], results: Path) -> str:
    """Of a version: the files' digests, wherever they lie, and the evaluation."""
    return digest_value([sorted(digests.values()), asdict(Results.load(results))])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
