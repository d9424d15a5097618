"""The registry's commands, from a run's configuration: what ``tools/promote.py`` and a pipeline's last steps do.

    version = register(config)                    # the last stage's newest checkpoint becomes the candidate
    report = gate(config, "candidate")
    report = promote(config, "candidate", why="hears better")
    good, bad = rollback(config, why="too slow")
    print(show(config))
"""

import base64
import getpass
import io
import json
import os
import tempfile
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import soundfile

from megatron_af.config import Config, ConfigError
from megatron_af.config.errors import suggestion
from megatron_af.release.export_trial import try_export
from megatron_af.release.gates import Trials, read_gates
from megatron_af.release.trial import try_loading
from megatron_af.release.versions import CANDIDATE, Releases, Report, UnknownVersion
from megatron_af.runs.bundle import make_release
from megatron_af.runs.digests import digest_value, recorded_digest
from megatron_af.runs.identity import stage_inputs
from megatron_af.runs.paths import outcome
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.runs.records import StageRecord
from megatron_af.runs.results import check_asked
from megatron_af.tracking.delivery import Delivery
from megatron_af.tracking.runs import tracking_uri
from megatron_af.tracking.spool import Address
from megatron_af.tracking.store import experiment_id, open_client, store_of

import mlflow  # isort: skip  (after store, which sets its environment)
from mlflow import MlflowClient  # isort: skip

SERVING = Path(__file__).parents[1] / "serve" / "mlflow_model.py"


def register(config: Config, stage: str = "", digest: str = "") -> str:
    """Release what a stage came to, its best checkpoint or its newest, and register it with its evaluation as the
    candidate.

    Args:
        stage: by default the last of the curriculum.
        digest: of the checkpoint that is meant; by default the one recorded beside it.

    Raises:
        DigestMismatch, FileNotFoundError: the checkpoint is not there or not the recorded one; nothing is registered.
        BadResults: the evaluation is of other weights, rows or settings; nothing is registered.
    """
    if not config.curriculum:
        raise ConfigError(f"{config.name} has nothing to release", ["curriculum is empty: name its stages"])
    stage = stage or list(config.curriculum)[-1]
    if stage not in config.curriculum:
        raise ConfigError(f"{config.name} has no stage {stage!r}{suggestion(stage, list(config.curriculum))}")
    check_asked(config, stage)
    release = make_release(config, stage, digest)
    released = outcome(config, stage)
    assert released is not None, "it was just released"
    weights = checkpoint_digest(released)
    releases = _releases(config)
    run_id = _stage_run(config, stage, releases.client)
    lineage = _lineage(config, stage)
    tags = {f"digest.{name}": digest for name, digest in lineage[stage].items()}
    tags |= {f"lineage.{name}": json.dumps(inputs) for name, inputs in lineage.items() if name != stage}
    tags |= {"stage": stage, "curriculum": ", ".join(config.curriculum), "config_digest": digest_value(config)}
    digests = {str(release): recorded_digest(release)}
    known = releases.registered(digests, config.stage_folder(stage))
    source = known.source if known else _log_serving_model(config, releases.client, run_id, release)
    return releases.register(release, digests, config.stage_folder(stage), run_id, source, tags, weights)


def gate(config: Config, name: str = CANDIDATE) -> Report:
    """Judge a version (number or alias) by the gates of ``registry.gates``.

    Raises:
        UnknownVersion: there is none, or it was not registered here.
        FileNotFoundError: its release is not there.
    """
    gates, releases = read_gates(config.registry.gates), _releases(config)
    version = releases.version(name)
    if "checkpoint.uri" not in version.tags:
        raise UnknownVersion(
            f"version {version.version} of {releases.model} was registered by something else than "
            "`tools/promote.py register`: it names no release that could be judged; choose another one by --version"
        )
    release = Path(url2pathname(urlsplit(version.tags["checkpoint.uri"]).path))
    if not release.is_dir():
        raise FileNotFoundError(
            f"the release of version {version.version} of {releases.model}, {release}, is not there: judge it where it "
            "is, or bring it back"
        )
    trials = Trials(
        load=lambda: try_loading(tracking_uri(config), version.source),
        export=lambda questions: try_export(release, questions),
    )
    return releases.gate(name, gates, trials)


def promote(config: Config, name: str = CANDIDATE, why: str = "passed its gates") -> Report:
    """Judge a version once more and make it the champion. Raises ``PromotionRefused`` or ``MoveRefused``."""
    report = gate(config, name)
    _releases(config).promote(report, why)
    return report


def rollback(config: Config, why: str) -> tuple[str, str]:
    """Restore the previous champion; the version that is champion again, and the one that was."""
    return _releases(config).rollback(why)


def show(config: Config) -> str:
    """The versions as a table, the newest first."""
    releases = _releases(config)
    lines = [f"{releases.model} in {tracking_uri(config)}"]
    for version in releases.versions():
        version = releases.version(str(version.version))  # with its aliases, which a search leaves out
        tags = version.tags
        aliases = ", ".join(version.aliases) or "–"
        gates = f"gates {tags['gates']}" if "gates" in tags else "not judged"
        by = f"; promoted by {tags['promoted.by']} {tags['promoted.when']}" if "promoted.by" in tags else ""
        lines.append(f"{version.version:>4}  {aliases:<28} {gates:<14} {tags.get('checkpoint.digest', '')[:19]}{by}")
    return "\n".join(lines)


def _releases(config: Config) -> Releases:
    return Releases(open_client(tracking_uri(config)), config.registry.model or config.name, _user())


def _user() -> str:
    """Who moves an alias, for others to read; a container may run as a number that has no name there."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _lineage(config: Config, stage: str) -> dict[str, dict[str, str]]:
    """Inputs (``runs/identity.py``) of a stage, and of every stage that its weights go back to."""
    found: dict[str, dict[str, str]] = {}
    ahead = [stage]
    while ahead:
        name = ahead.pop(0)
        record = StageRecord.load(config.stage_folder(name))
        found[name] = record.inputs if record else stage_inputs(config, name)
        origins = config.curriculum[name].entry.values()
        ahead += [origin for origin in dict.fromkeys(origins) if origin in config.curriculum and origin not in found]
    return found


def _stage_run(config: Config, stage: str, client: MlflowClient) -> str:
    """The stage's run, with all that was logged to it; one of its own where training was not tracked, or elsewhere."""
    here = store_of(tracking_uri(config))
    spools = sorted(
        (file.parent for file in (config.stage_folder(stage) / "tracking").glob("*/run.json")),
        key=lambda folder: (folder / "run.json").stat().st_mtime,
    )
    spools = [folder for folder in spools if store_of(Address.load(folder).uri) == here]
    if not spools:
        experiment = experiment_id(client, config.tracking.experiment or config.name)
        run_id = str(client.create_run(experiment, run_name=f"{stage} (registered)").info.run_id)
        client.set_terminated(run_id)
        return run_id
    delivery = Delivery(spools[-1])
    delivery.send_pending()
    return delivery.sent.run_id


def _log_serving_model(config: Config, client: MlflowClient, run_id: str, release: Path) -> str:
    """Put the MLflow model that answers from ``release`` into the run's artifacts; its address.

    A few kilobytes: no weights. (``log_model`` would load the weights here to try the example; a gate does that, in a
    process of its own.)
    """
    from megatron_af.serve.mlflow_model import SIGNATURE

    with tempfile.TemporaryDirectory() as folder:
        mlflow.pyfunc.save_model(
            f"{folder}/model",
            python_model=str(SERVING),
            model_config={
                "release": release.as_uri(), "digest": recorded_digest(release), "audio_folder": "", "precision": ""
            },
            signature=SIGNATURE,
            input_example=[_example()],
            pip_requirements=[f"megatron-af=={package_version('megatron-af')}"],
        )
        client.log_artifacts(run_id, f"{folder}/model", f"model/{release.name}")
    return f"{client.get_run(run_id).info.artifact_uri}/model/{release.name}"


def _example() -> dict[str, Any]:
    """A request that is whole in itself: half a second of a 440 Hz tone."""
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 16_000)).astype(np.float32)
    wav = io.BytesIO()
    soundfile.write(wav, tone, 16_000, format="WAV", subtype="PCM_16")
    audio = "data:audio/wav;base64," + base64.b64encode(wav.getvalue()).decode()
    return {"prompt": "what is heard?", "audio": audio}
