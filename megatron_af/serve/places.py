"""What lies in a folder that somebody wants to load: a run, a stage, a checkpoint or a release. Needs no torch.

    config, checkpoint = find(Path("runs/demo"))          # config.stage and where its run lies, as it is now
    config, checkpoint = embedding_stage(config)
"""

from dataclasses import replace
from pathlib import Path

from megatron_af.config import Config
from megatron_af.config.loading import load_config
from megatron_af.inference.requests import BadRequest
from megatron_af.runs.bundle import CONFIG, RETRIEVAL_ENCODER, TEXT_TOWER, TOKENIZER
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import MANIFEST, SETTINGS, latest, outcome, read_resume


def find(place: Path) -> tuple[Config, Path]:
    """The configuration of the stage to load, and its checkpoint.

    Of a run that is the last stage of the curriculum that answers and has a checkpoint, or else the last that has one.

    Raises:
        FileNotFoundError: nothing trained is there.
        ConfigError: the configuration cannot be read.
    """
    place = place.absolute()
    if not place.is_dir():
        raise FileNotFoundError(f"expected the folder of a run, stage, checkpoint or release, got {place}: not there")
    if (place / MANIFEST).is_file():
        return _of_checkpoint(place)
    if (place / CONFIG).is_file():
        return _of_release(place)
    if (place / "checkpoints").is_dir():
        return _of_stage(place)
    trained = [_of_stage(stage.parent) for stage in sorted(place.glob("*/checkpoints")) if latest(stage) is not None]
    if not trained:
        raise FileNotFoundError(f"expected a run with a trained stage, got {place}: no stage in it has a checkpoint")
    order = list(trained[-1][0].curriculum)
    answering = [one for one in trained if one[0].curriculum[one[0].stage].objective == "answer"]
    return max(answering or trained, key=lambda one: order.index(one[0].stage) if one[0].stage in order else -1)


def run_name(place: Path, config: Config) -> str:
    """What the run is called that a place belongs to: the folder of a release has a name of its own.

    Args:
        config: what :func:`find` found there.
    """
    is_release = (place / CONFIG).is_file() and not (place / MANIFEST).is_file()
    return load_config(place / CONFIG).name if is_release else config.name


def embedding_stage(config: Config) -> tuple[Config, Path]:
    """The stage of the same run that embeds: ``retrieval.stage``, or the last AF-CLAP stage with a checkpoint.

    Raises:
        BadRequest: there is none.
    """
    stages = [name for name, stage in config.curriculum.items() if spec_of(stage).embeds]
    wanted = [config.retrieval.stage] if config.retrieval.stage else stages[::-1]
    for name in wanted:
        checkpoint = outcome(config, name)
        if checkpoint is not None:
            return replace(config, stage=name), checkpoint
    have = f"{', '.join(stages)} without a checkpoint" if stages else "none"
    raise BadRequest(f"embed: expected a run with a trained AF-CLAP stage, got {config.name}, which has {have}")


def _of_stage(stage: Path) -> tuple[Config, Path]:
    newest = latest(stage / "checkpoints")
    if newest is None:
        raise FileNotFoundError(f"expected a trained stage, got {stage}, which has no checkpoint yet")
    config, _ = _of_checkpoint(newest)
    return config, outcome(config, config.stage) or newest


def _of_checkpoint(checkpoint: Path) -> tuple[Config, Path]:
    if not (checkpoint / SETTINGS).is_file():
        raise FileNotFoundError(f"expected a checkpoint that training wrote, got {checkpoint}, without {SETTINGS}")
    if len(checkpoint.parents) < 3:
        raise FileNotFoundError(f"expected a checkpoint in its run, as RUN/STAGE/checkpoints/STEP, got {checkpoint}")
    run = checkpoint.parents[2]
    config = load_config(checkpoint / SETTINGS)
    stage = read_resume(checkpoint)["stage"]
    return replace(_here(config), output=str(run.parent), name=run.name, stage=stage), checkpoint


def _of_release(release: Path) -> tuple[Config, Path]:
    """A release is laid out like a run of its own."""
    config = load_config(release / CONFIG)
    tokenizer, tower = release / TOKENIZER, release / TEXT_TOWER
    data, model = config.data, config.model
    if tokenizer.exists():
        data = replace(data, tokenizer=str(tokenizer))
    if tower.exists():
        model = replace(model, clap=replace(model.clap, text_tower=str(tower)))
    config = replace(_here(config), output=str(release.parent), name=release.name, data=data, model=model)
    if (encoder := release / RETRIEVAL_ENCODER).exists():
        config = replace(config, retrieval=replace(config.retrieval, encoder=str(encoder)))
    checkpoint = latest(config.stage_folder(config.stage) / "checkpoints")
    if checkpoint is None:
        raise FileNotFoundError(f"expected a release, got {release}, which has no checkpoint of {config.stage}")
    return config, checkpoint


def _here(config: Config) -> Config:
    """For this machine, which need not have the layers that the model was trained with."""
    return replace(config, layers="")
