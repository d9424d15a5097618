"""The YAML file of somebody's own run, with a comment at each number that follows from the data.

    text = write_recipe("digits", Path("data/digits"), found.origins, facts)      # facts: what was imported, measured
"""

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megatron_af.config import ImportConfig
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.prepare.advice import MOST, fitting_augment, fitting_text, fitting_window
from megatron_af.prepare.statistics import Statistics
from megatron_af.start.origin import ANSWERING, Begin

BATCH = 32
CLAP_PASSES, CLAP_STEPS = 8, (300, 500)
ANSWER_PASSES, ANSWER_STEPS = 6, (200, 400)
"""Passes over the training rows that a stage makes, within a least and a most number of steps."""
FEWEST_WORDS = 128
MOST_WINDOWS = 6
"""Of a clip, at toy size: more costs minutes."""


def write_recipe(
    name: str,
    root: Path,
    origins: dict[str, ImportConfig],
    facts: Statistics,
    begin: Begin | None = None,
    words: int = 0,
) -> str:
    """
    Args:
        root: ``data.root``: rows, prepared recordings and the tokenizer lie there.
        facts: of the rows that training and its held-out part come from.
        begin: whose weights are trained on, in their sizes and windows; None: fresh ones.
        words: ids of the tokenizer.
    """
    window = begin.model.front_end.window_seconds if begin else fitting_window(facts.seconds)
    usual = float(np.quantile(facts.seconds, MOST))
    windows = min(MOST_WINDOWS, max(1, math.ceil(usual / window - 0.05)))
    train = round(facts.rows * (0.75 if "all" in origins else 0.9))
    text_tokens = fitting_text(facts.tokens)
    described = facts.captions > 0
    contrastive = _steps(CLAP_PASSES, CLAP_STEPS, train)
    answering = _steps(ANSWER_PASSES, ANSWER_STEPS, train)
    longest = max(facts.seconds)
    heard = f"{window:g} s" if windows == 1 else f"{windows} windows of {window:g} s"
    contrastive_entry = _entry(begin, "encoder", "clap")
    clap = f"""  clap: # the encoder learns what is said of the recordings: without this, answers hardly teach it
    objective: contrastive
{contrastive_entry}    trainable: ["*"]
    frozen: ["encoder.bn0.*"]
{_augment(contrastive * BATCH / train, window)}    blend: {{train: 1}}
    max_windows: {windows} # {heard}; what lies behind is not heard, and the longest recording has {longest:.3g} s
    global_batch_samples: {BATCH}
    micro_batch_samples: {BATCH // 2}
    watch: {{dataset: development}}
    steps: {contrastive} # {contrastive * BATCH / train:.1f} passes over about {train:,} rows
    optimizer: {{learning_rate: 1.0e-3, weight_decay: 0.2, beta2: 0.98, schedule: cosine, warmup_steps: 30}}
    evaluation: [test]
"""
    why = 'how sure an answer must be: asked with unsure="none of these", it says that in place of others'
    sure = f"    calibrate: development # {why}\n" if facts.options else ""
    entry = _entry(begin, *(() if described else ("encoder",)), *ANSWERING, encoder="clap" if described else "")
    trained = '    frozen: ["encoder.*"] # its features are made once and kept\n' if described else ""
    if not described:
        trained = _augment(answering * BATCH / train, window)
    return f"""\
# Written by tools/start.py of the recordings in {root / "recordings"}; it is yours to change. What it changes is done
# again by the same command, or by these, one by one:
#   python tools/prepare_data.py import  --config THIS_FILE
#   python tools/make_tokenizer.py       --config THIS_FILE
#   python tools/prepare_data.py prepare --config THIS_FILE
#   python tools/run_curriculum.py       --config THIS_FILE
include: [model/demo.yaml] # sizes that two CPU cores can train
name: {json.dumps(name)}
precision: fp32
launch: {{processes_per_node: 2}} # one per GPU, or what the cores allow
checkpoint: {{keep: 1, every_steps: 100}}
tracking: {{enabled: false}} # true: follow it in MLflow (docs/mlflow.md)
model:
{_sizes(window, begin, text_tokens, words)}data:
  root: {json.dumps(str(root), ensure_ascii=False)}
  tokenizer: ${{data.root}}/tokenizer.json # every word of the rows; tools/make_tokenizer.py adds new ones
  feature_cache: ${{output}}/${{name}}/features
  datasets:
{_datasets(origins)}curriculum:
{clap if described else ""}  answer: # the language model learns to answer from what the encoder hears
{entry}    trainable: ["*"]
{trained}    blend: {{train: 1}}
    max_windows: {windows}
    max_text_tokens: {text_tokens} # the longest question with its answer
    global_batch_samples: {BATCH}
    micro_batch_samples: {BATCH // 2}
    watch: {{dataset: development}} # the log says how it goes there: loss, and answers that it is sure of
    steps: {answering}
    optimizer:
      learning_rate: 1.0e-3
      gate_learning_rate_scale: 20 # gates must open in few steps
      weight_decay: 0.02
      beta2: 0.98
      schedule: cosine
      warmup_steps: 30
    evaluation: [test]
{sure}"""


def _sizes(window: float, begin: Begin | None, text_tokens: int, words: int) -> str:
    """The model's sections: what differs from the included sizes."""
    lines = []
    if begin is None:
        why = "95% of the recordings are no longer, or it is AF-CLAP's 10 s"
        lines.append(f"  front_end: {{window_seconds: {window:g}}} # {why}\n")
    if begin is None or not begin.answers:
        lines.append("  transform: {layers: 1}\n")
        sizes = f"{{layers: 2, max_positions: {max(256, 2 * text_tokens)}, vocab: {_rows(words)}}}"
        lines.append(f"  lm: {sizes} # {words:,} words are used\n")
    if begin is None:
        return "".join(lines)
    included = load_config(CONFIGS / "model" / "demo.yaml", ["name=sizes"]).model
    sections = ["front_end", "encoder", *(["transform", "cross_attention"] if begin.answers else [])]
    for part in [*sections, *(["clap"] if "clap" in begin.taken else [])]:
        changed = _changed(getattr(included, part), getattr(begin.model, part))
        if changed or part in ("front_end", "encoder"):
            lines.append(f"  {part}: {json.dumps(changed)} # of {begin.origin}\n")
    if begin.answers:
        own = replace(begin.model.lm, vocab=max(begin.model.lm.vocab, _rows(words)))
        lines.append(f"  lm: {json.dumps(_changed(included.lm, own))} # of {begin.origin}; {words:,} words are used\n")
    return "".join(lines)


def _augment(passes: float, window: float) -> str:
    """The stage's augmentation, as a line or none."""
    if (augment := fitting_augment(passes, window)) is None:
        return ""
    why = f"the same recordings come {passes:.0f} times: stripes of them are left out, others each time"
    return f"    augment: {{time_seconds: {augment.time_seconds:g}, mel_bins: {augment.mel_bins}}} # {why}\n"


def _entry(begin: Begin | None, *parts: str, encoder: str = "") -> str:
    """The stage's ``entry``, as a line or none.

    Args:
        encoder: stage that it comes from.
    """
    named = {"encoder": encoder} if encoder else {}
    named |= {part: str(begin.taken[part]) for part in parts if part in begin.taken} if begin else {}
    return f"    entry: {json.dumps(named)}\n" if named else ""


def _rows(words: int) -> int:
    """Of the embedding table: room for a tenth more words, so that a few new ones need no other model."""
    return max(FEWEST_WORDS, 64 * math.ceil(1.1 * words / 64))


def _changed(before: Any, now: Any) -> dict[str, Any]:
    was = asdict(before)
    return {key: value for key, value in asdict(now).items() if value != was[key]}


def _steps(passes: int, bounds: tuple[int, int], rows: int) -> int:
    return min(max(10 * round(passes * rows / BATCH / 10), bounds[0]), bounds[1])


def _datasets(origins: dict[str, ImportConfig]) -> str:
    lines = []
    whole, rest = ("all", 0.75) if "all" in origins else ("train_all", 0.9)
    origin = origins.get("all") or origins["train"]
    lines.append(f"{whole}: {{origin: {_origin(origin)}, manifest: {whole}.jsonl}}")
    ends = [("train", 0.0, rest), ("development", rest, 0.85 if "all" in origins else 1.0)]
    ends += [("test", 0.85, 1.0)] if "all" in origins else []
    for split, begin, end in ends:
        if split in origins and split != "train":
            continue
        whole_end = 1.0 if split == "train" and "development" in origins else end
        part = f"{{of: {whole}, begin: {begin:g}, end: {whole_end:g}}}"
        lines.append(f"{split}: {{part: {part}, source: {split}.jsonl, manifest: prepared/{split}}}")
    for split, given in origins.items():
        if split not in ("all", "train"):
            lines.append(f"{split}: {{origin: {_origin(given)}, source: {split}.jsonl, manifest: prepared/{split}}}")
    return "".join(f"    {line}\n" for line in lines)


def _origin(origin: ImportConfig) -> str:
    """As flow YAML, without what has its default."""
    plain = asdict(ImportConfig(format=origin.format, path=""))
    changed = {key: value for key, value in asdict(origin).items() if value != plain[key] or key == "format"}
    return _flow(changed)


def _flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z][\w./-]*", text) and (not isinstance(value, str) or yaml.safe_load(text) == text)
    return text if plain else json.dumps(text, ensure_ascii=False)
