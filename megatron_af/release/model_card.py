"""The README of an exported model: what it is, how to use it, how it was trained, and what was measured of it.

    text = model_card(config, checkpoint, place, "demo")

Everything in it is read from the release: its configuration, its checkpoint's manifest and digests, and the evaluation
of these very weights where its run still has one.
"""

from pathlib import Path

from megatron_af.config import Config
from megatron_af.config.loading import load_config
from megatron_af.runs.bundle import CONFIG
from megatron_af.runs.paths import read_manifest, read_resume
from megatron_af.runs.pointers import checkpoint_digest, source_of
from megatron_af.runs.results import BadResults, Results, tables

HEADER = """---
library_name: transformers
pipeline_tag: audio-text-to-text
tags: [audio, audio-flamingo, {family}, custom_code]
---
# {name}

Audio Flamingo: a language model ({lm}) that hears recordings of up to {seconds:g} s through gated cross-attention to an
HTS-AT encoder. The code that computes it lies beside the weights.

## Use

```sh
pip install "transformers>=5" torch soundfile soxr
```

```python
from transformers import AutoModelForCausalLM, AutoProcessor

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
content = [{{"type": "audio", "audio": "dog.wav"}}, {{"type": "text", "text": "what is heard?"}}]
chat = [{{"role": "user", "content": content}}]
inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
answer = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0])
```

`"audio"` is a file that soundfile reads; a waveform as an array goes with
`processor_kwargs={{"sampling_rate": …}}`. A batch is a list of chats; texts and recordings may be of any length.
"""


def model_card(config: Config, checkpoint: Path, place: Path, name: str) -> str:
    """
    Args:
        checkpoint: whose weights are exported, of ``config.stage``.
        place: the release.
        name: of the exported folder.
    """
    front_end, lm = config.model.front_end, config.model.lm
    seconds = front_end.heard_seconds(config.curriculum[config.stage].max_windows)
    language = f"{lm.family}, {lm.layers} layers of {lm.hidden}"
    parts = [HEADER.format(name=name, family=lm.family, lm=language, seconds=seconds)]
    parts += [_training(config), _lineage(checkpoint)]
    return "\n".join([*parts, _evaluation(config, checkpoint, place)])


def _training(config: Config) -> str:
    """The stages that the weights go back to."""
    names = {config.stage}
    for name in reversed(config.curriculum):
        names |= set(config.curriculum[name].entry.values()) if name in names else set()
    lines = ["## Training", "", "| stage | objective | data sets | steps | trains |", "|---|---|---|---|---|"]
    for name, stage in config.curriculum.items():
        if name in names:
            blend = ", ".join(f"{dataset} × {weight:g}" for dataset, weight in stage.blend.items()) or "–"
            trains = ", ".join(f"`{pattern}`" for pattern in stage.trainable) or "–"
            lines.append(f"| {name} | {stage.objective} | {blend} | {stage.steps} | {trains} |")
    return "\n".join([*lines, ""])


def _lineage(checkpoint: Path) -> str:
    """Where each part's weights come from, by digest."""
    resume, parts = read_resume(checkpoint), read_manifest(checkpoint)["parts"]
    lines = [
        "## Lineage",
        "",
        f"Stage `{resume['stage']}` after {resume['step']} steps and {resume['samples']} samples.",
        "",
        "| part | weights |",
        "|---|---|",
    ]
    lines += [f"| {part} | `{checkpoint_digest(source_of(checkpoint, part))}` |" for part in parts]
    return "\n".join([*lines, ""])


def _evaluation(config: Config, checkpoint: Path, place: Path) -> str:
    """Tables of the results of these weights, which lie in the stage's folder of the run that was released."""
    lines = ["## Evaluation", ""]
    folder = _run_of(config, place) / config.stage
    try:
        Results.load(folder, checkpoint_digest(checkpoint))
        measured = tables(folder)
    except BadResults:
        measured = {}  # of other weights: the stage was trained on since
    for dataset, (columns, rows) in measured.items():
        lines += [f"### {dataset}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
        lines.append("")
    return "\n".join(lines if measured else [*lines, "None of these weights was found.", ""])


def _run_of(config: Config, place: Path) -> Path:
    if not (place / CONFIG).is_file():
        return Path(config.output) / config.name
    released = load_config(place / CONFIG)
    return Path(released.output) / released.name


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str("–" if value is None else value)
