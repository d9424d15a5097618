"""What a trained run offers to begin one's own with, and what of it fits.

    begin = offered(Path("runs/demo"))           # of its newest stage that answers, or a stage, checkpoint or release
    begin = begin.with_words(made)               # once the recordings' words stand in the tokenizer
    for line in begin.told(): print(line)

A part is taken where the written run has it in the same form and its words mean the same. The encoder, with the windows
that it knows, goes along always; what answers (transformation layers, gated blocks, language model, added rows) goes
together, for each was trained with the others, and needs a word-level tokenizer that the new words can stand behind;
AF-CLAP's side is as long as its tokenizer, so that one new word makes it another.
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_af.config import ConfigError, ModelConfig
from megatron_af.foreign import ForeignError
from megatron_af.inference.requests import BadRequest
from megatron_af.prepare.vocabulary import Made
from megatron_af.runs.pointers import holds
from megatron_af.serve.places import embedding_stage, find
from megatron_af.text.tokenizer import read_tokenizer
from megatron_af.text.words import NoWords, extend

ANSWERING = ("transform", "xattn", "lm", "rows")


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Trained weights to begin with."""

    origin: Path
    """As it was named."""
    model: ModelConfig
    """Sizes that they have."""
    taken: dict[str, Path]
    """Part -> the checkpoint that it comes from; the encoder's at least."""
    left: dict[str, str] = field(default_factory=dict)
    """Part that is there and not taken -> why."""
    tokenizer: Path | None = None
    """Whose words the language model knows: to be extended by new ones; None where that is not taken."""

    @property
    def answers(self) -> bool:
        """Whether what answers is taken."""
        return "lm" in self.taken

    def without(self, parts: tuple[str, ...], why: str) -> "Begin":
        """The same, but that these are not taken."""
        left = {part: why for part in parts if part in self.taken}
        kept = {part: at for part, at in self.taken.items() if part not in parts}
        return replace(self, taken=kept, left=self.left | left, tokenizer=self.tokenizer if "lm" in kept else None)

    def with_words(self, made: Made) -> "Begin":
        """What still fits the tokenizer that came of it."""
        if self.tokenizer is None:
            return self
        was, now = read_tokenizer(self.tokenizer).get_vocab(), read_tokenizer(made.file).get_vocab()
        if moved := [word for word, index in was.items() if now.get(word) != index]:
            why = f"{moved[0]!r} has another id in {made.file} than in {self.tokenizer}; delete the first to begin so"
            return self.without((*ANSWERING, "clap"), why)
        if new := len(now) - len(was):
            return self.without(("clap",), f"its text tower has no rows for {new:,} new words")
        return self

    def with_texts(self, tokens: int) -> "Begin":
        """What still fits texts of so many tokens."""
        most = self.model.lm.max_positions
        why = f"its language model reads {most:,} tokens (model.lm.max_positions), and a text has {tokens:,}"
        return self if tokens <= most else self.without(ANSWERING, why)

    def told(self) -> list[str]:
        """What is taken and what is not, a line each."""
        origins = dict.fromkeys(self.taken.values())
        lines = [f"begins with {', '.join(p for p, at in self.taken.items() if at == o)} of {o}" for o in origins]
        reasons = dict.fromkeys(self.left.values())
        lines += [f"not taken: {', '.join(p for p, w in self.left.items() if w == why)}: {why}" for why in reasons]
        return [f"{self.origin}: {line}" for line in lines]


def offered(origin: Path) -> Begin:
    """What a run, a stage, a checkpoint or a release holds that may be begun with.

    Raises:
        ConfigError: it holds no encoder.
        FileNotFoundError: nothing trained is there.
    """
    config, checkpoint = find(origin)
    if not holds(checkpoint, "encoder"):
        raise ConfigError(f"{origin} cannot be begun with", [f"{checkpoint} holds no encoder; name one that hears"])
    begin = Begin(
        origin=origin,
        model=config.model,
        taken={part: checkpoint for part in ("encoder", *ANSWERING, "clap") if holds(checkpoint, part)},
        tokenizer=_file(config.data.tokenizer),
    )
    if "clap" not in begin.taken:
        with suppress(BadRequest):
            _, contrastive = embedding_stage(config)
            begin = replace(begin, taken=begin.taken | {"clap": contrastive})
    if holds(checkpoint, "lora"):
        begin = replace(begin, left={"lora": "the written stages train no adapters; tools/export.py merges them"})
    if config.model.clap.text_tower:
        begin = begin.without(("clap",), "the written stages train a text tower of their own words")
    if problem := _takes_no_words(begin.tokenizer):
        begin = begin.without((*ANSWERING, "clap"), problem)
    return begin


def _file(tokenizer: str) -> Path | None:
    place = Path(tokenizer)
    file = place / "tokenizer.json" if place.is_dir() else place
    return file if file.is_file() else None


def _takes_no_words(tokenizer: Path | None) -> str:
    """Why a tokenizer cannot get the recordings' words; empty where it can."""
    if tokenizer is None:
        return "its tokenizer is no file on this machine"
    try:
        extend(read_tokenizer(tokenizer), ())
    except (NoWords, ForeignError) as why:
        return f"{tokenizer}: {why}"
    return ""
