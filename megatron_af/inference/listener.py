"""A trained stage that answers questions about rows, shared among data-parallel ranks.

    listener = Listener(config)                    # newest checkpoint of config.stage; process group exists
    texts = listener(rows)                         # answers to each row's last question; all ranks get all
    answers = listener.answers(rows, decodings)    # of this rank's rows, each decoded as asked
    logprobs = listener.scores(rows, options)      # how likely given answers are
    looks = listener.looks(rows)                   # where the answers to rows of one question and one clip looked
    listener.close()

What comes before a row's last question, turns of a dialogue or examples with their clips, is read and never answered:
``Row.each_question`` makes rows of all questions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import batched, groupby
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from megatron_af.config import Config, ConfigError, ParallelConfig
from megatron_af.data.answer_texts import packed_row, text_batch
from megatron_af.data.batch import IGNORED, AudioKeys, StepBatch, TextBatch
from megatron_af.data.clips import ClipLoader
from megatron_af.data.rows import Row
from megatron_af.data.sample_source import Sample
from megatron_af.data.stream import hear
from megatron_af.data.templates import STYLES, RowText, TooLong, UnknownWords, answer_ids, render
from megatron_af.decoder.cache import HeardAudio
from megatron_af.decoder.plain import only_answer
from megatron_af.inference.answers import Answering, score, within, write
from megatron_af.inference.attention import recorded, token_seconds
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.looks import Look
from megatron_af.inference.reading import Reading, audio_keys, heard_audio
from megatron_af.inference.requests import BadRequest
from megatron_af.inference.writing import Answer, Tell, Writing
from megatron_af.model import AudioFront, Vocabulary
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.calibration import read_calibration
from megatron_af.runs.paths import resolve_entry
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.checkpoint_reading import load_model

HEARD_TOGETHER = 16
"""Recordings whose questions are answered in one batch; questions about one recording are never parted."""


WHOLE = ParallelConfig()
"""Each rank holds the whole model."""


class Listener:
    """Holds the model in a layout of its own, whatever layout it was trained in; ranks of one model-parallel group make
    the same calls.

    Args:
        parallel: how the model lies on the ranks; default: whole on each.
        checkpoint: of ``config.stage``; None: its newest one.
        watch: told, after each batch, how many questions this rank has answered in it.

    Raises:
        ConfigError: ``config.stage`` gives no answers.
        FileNotFoundError: it has no checkpoint.
    """

    def __init__(
        self,
        config: Config,
        checkpoint: Path | None = None,
        *,
        parallel: ParallelConfig = WHOLE,
        watch: Callable[[int], None] = lambda questions: None,
    ) -> None:
        self.config = replace(config, parallel=parallel)
        self.watch = watch
        self.stage = config.curriculum[config.stage]
        if self.stage.objective != "answer":
            raise ConfigError("nothing to ask", [f"stage = {config.stage}: its objective gives no answers"])
        self.decoding = Decoding(max_new_tokens=config.evaluation.max_answer_tokens)
        self.tokenizer = Tokenizer.load(config.data.tokenizer)
        checkpoint = checkpoint or resolve_entry(config, config.stage)
        device = current_device()
        self.groups = process_groups.initialize(self.config.parallel, config.seed)
        vocabulary = Vocabulary(first_added_id=self.tokenizer.first_added_id, num_added=self.tokenizer.num_added)
        self.model = load_model(self.config, self.stage, vocabulary, self.groups, checkpoint)
        self.calibration = read_calibration(config.stage_folder(config.stage), checkpoint_digest(checkpoint))
        self._front.eval()  # an encoder drops branches of its own while it learns
        for chunk in self.model.chunks:
            only_answer(chunk)
        self._loader = ClipLoader(self.config, max_windows=self.stage.max_windows, device=device)

    def prompt(self, row: Row) -> RowText:
        """What the model reads of a row before it answers the last question.

        Raises:
            TooLong: that question does not fit into ``max_text_tokens``, even without what comes before it.
        """
        style = STYLES[self.config.data.text_style]
        return render(row, self.tokenizer, self.stage.max_text_tokens, style=style, prompt=True)

    def __call__(
        self, rows: Sequence[Row], *, root: Path | None = None, decoding: Decoding | None = None
    ) -> list[str | None]:
        """The answer to each row's last question; None where that is too long to be asked. A collective.

        Args:
            root: where the rows' clips lie; default: below ``data.root``.
            decoding: of each answer; default: greedy, of ``evaluation.max_answer_tokens``.

        Raises:
            AudioError: a clip cannot be decoded.
        """
        told = self.told(rows, root=root, decoding=decoding)
        return [None if answer is None else answer.text for answer in told]

    def told(
        self, rows: Sequence[Row], *, root: Path | None = None, decoding: Decoding | None = None
    ) -> list[Answer | None]:
        """The same, each with its confidence. A collective."""
        own: dict[int, Answer | None] = {}
        for places in self._shared(rows):
            answers = self.answers(
                [rows[place] for place in places], [decoding or self.decoding] * len(places), root=root
            )
            own |= dict(zip(places, answers, strict=True))
            self.watch(len(places))
        return self._all(own, len(rows))

    def settled(self, decoding: Decoding, row: Row, root: Path | None = None) -> Decoding:
        """With the confidence that this model's development rows ask for, where it is wanted and not given; about a
        recording that is like none of theirs no answer is sure enough.

        Raises:
            BadRequest: nobody calibrated it.
        """
        if not decoding.unsure or decoding.least_confidence is not None:
            return decoding
        if self.calibration is None:
            raise BadRequest(
                "unsure: nobody has found out how sure this model must be; give least_confidence, or name a "
                f"development split as curriculum.{self.config.stage}.calibrate and measure it (tools/evaluate.py)"
            )
        strange = bool(row.clips) and not self.calibration.knows(self.vector(row, root))
        return replace(decoding, least_confidence=math.inf if strange else self.calibration.least_confidence)

    def vector(self, row: Row, root: Path | None = None) -> NDArray[np.float32]:
        """What the encoder makes of a row's last clip: the mean over its time, as a unit vector [D]."""
        with torch.no_grad():
            features_WLD = self._front.encode(self.mel(replace(row, clips=row.clips[-1:]), root))
            vector_D = features_WLD.float().flatten(0, -2).mean(0)
        vector: NDArray[np.float32] = functional.normalize(vector_D, dim=0).cpu().numpy()
        return vector

    def answers(
        self,
        rows: Sequence[Row],
        decodings: Sequence[Decoding],
        *,
        root: Path | None = None,
        tell: Sequence[Tell | None] = (),
    ) -> list[Answer | None]:
        """The answer to each row's last question, computed in one batch by this rank's model-parallel group alone; None
        where the question is too long. See :func:`megatron_af.inference.answers.write`."""
        prompts = self._prompts(rows)
        found: list[Answer | None] = [None] * len(rows)
        if prompts:
            tells = [tell[place] if tell else None for place in prompts]
            written = write(
                self.reading(list(prompts.values()), root),
                [text.segments[-1] for text in prompts.values()],
                [self.settled(decodings[place], rows[place], root) for place in prompts],
                self.tokenizer,
                tell=tells,
            )
            for place, answer in zip(prompts, written, strict=True):
                found[place] = answer
        return found

    def join(
        self,
        together: Answering,
        rows: Sequence[Row],
        decodings: Sequence[Decoding],
        *,
        root: Path | None = None,
        tell: Sequence[Tell | None] = (),
    ) -> None:
        """Rows are answered together with those that already are.

        Raises:
            TooLong: one of their questions does not fit.
        """
        texts = [self.prompt(row) for row in rows]
        prompts = [text.segments[-1] for text in texts]
        tells = tell or [None] * len(rows)
        settled = [self.settled(decoding, row, root) for row, decoding in zip(rows, decodings, strict=True)]
        reading = self.reading(texts, root)
        writings = [
            Writing(self.tokenizer, within(reading, prompt, decoding), prompt, told)
            for prompt, decoding, told in zip(prompts, settled, tells, strict=True)
        ]
        together.join(reading, prompts, writings)

    def scores(
        self, rows: Sequence[Row], options: Sequence[Sequence[str]], *, root: Path | None = None
    ) -> list[list[float] | None]:
        """Log-probability of each option as the answer to its row's last question, by this rank's model-parallel group
        alone; None where the question, or one of its options behind it, is too long.

        Raises:
            UnknownWords: the tokenizer cannot write an option.
        """
        prompts = self._prompts(rows)
        found: list[list[float] | None] = [None] * len(rows)
        if prompts:
            ids = [[answer_ids(rows[place], option, self.tokenizer) for option in options[place]] for place in prompts]
            texts = list(prompts.values())
            scored = score(self.reading(texts, root), [text.segments[-1] for text in texts], ids, self.tokenizer)
            for place, logprobs in zip(prompts, scored, strict=True):
                found[place] = logprobs
        return found

    def likelihoods(
        self, rows: Sequence[Row], options: Sequence[Sequence[str]], *, root: Path | None = None
    ) -> list[list[float] | None]:
        """:meth:`scores` of all rows, shared among the ranks; None also where the tokenizer cannot write an option. A
        collective."""
        own: dict[int, list[float] | None] = {}
        for places in self._shared(rows):
            own |= dict.fromkeys(places)
            written = [p for p in places if self._writes(rows[p], options[p])]
            scored = self.scores([rows[p] for p in written], [options[p] for p in written], root=root)
            own |= dict(zip(written, scored, strict=True))
        return self._all(own, len(rows))

    def _writes(self, row: Row, texts: Sequence[str]) -> bool:
        try:
            return all(answer_ids(row, text, self.tokenizer) for text in texts)
        except UnknownWords:
            return False

    def reading(self, texts: Sequence[RowText], root: Path | None = None) -> Reading:
        """What has heard the rows' audio and read nothing."""
        audio, heard = hear(self._below(root), [text.row for text in texts])
        immediate = self.config.model.cross_attention.immediate
        return Reading(self.model, self.tokenizer, heard_audio(self._front, audio, heard), immediate=immediate)

    def mel(self, row: Row, root: Path | None = None) -> Tensor:
        """Windows of a row's clips in decibels, ``mel_WFM``. Raises ``AudioError``: one cannot be decoded."""
        audio, _ = hear(self._below(root), [row])
        assert audio.mel_WFM is not None
        return audio.mel_WFM

    def _below(self, root: Path | None) -> ClipLoader:
        return self._loader if root is None else self._loader.below(root)

    def keys(self, row: Row, root: Path | None = None, *, first: int = 0) -> AudioKeys:
        """Audio tokens of a row's clips, numbered from ``first`` on: what a reading hears more."""
        loader = self._loader if root is None else self._loader.below(root)
        audio, heard = hear(loader, [row])
        with torch.no_grad():
            keys = audio_keys(self._front, audio, heard)
        return replace(keys, audio_of_BL=torch.where(keys.audio_of_BL < 0, -1, keys.audio_of_BL + first))

    def reading_of(self, keys: AudioKeys) -> Reading:
        """What has heard this audio, a row each, and read nothing."""
        heard = HeardAudio.of(keys, range(keys.tokens_LBD.shape[1]))
        return Reading(self.model, self.tokenizer, heard, immediate=self.config.model.cross_attention.immediate)

    @property
    def _front(self) -> AudioFront:
        front = self.model.front
        assert isinstance(front, AudioFront)
        return front

    def _prompts(self, rows: Sequence[Row]) -> dict[int, RowText]:
        """By place of their row; those whose question is too long are left out."""
        prompts: dict[int, RowText] = {}
        for place, row in enumerate(rows):
            with suppress(TooLong):
                prompts[place] = self.prompt(row)
        return prompts

    def _shared(self, rows: Sequence[Row]) -> Iterator[list[int]]:
        """Places of the rows of this rank's batches."""
        together = [list(group) for _, group in groupby(range(len(rows)), key=lambda i: rows[i].clips or i)]
        for some in batched(together[self.groups.data_rank :: self.groups.data_size], HEARD_TOGETHER):
            yield [place for group in some for place in group]

    def _all[Found](self, own: dict[int, Found], count: int) -> list[Found]:
        shares: list[dict[int, Found]] = [{} for _ in range(self.groups.data_size)]
        dist.all_gather_object(shares, own, group=self.groups.data)
        merged = {place: answer for share in shares for place, answer in share.items()}
        return [merged[place] for place in range(count)]

    def looks(self, rows: Sequence[Row], *, root: Path | None = None) -> list[Look]:
        """Answers each row's one question, on this rank alone, and says where each answer looked. Rows whose question
        is too long are left out."""
        looks: list[Look] = []
        for some in batched(rows, HEARD_TOGETHER):
            answers = self.answers(some, [self.decoding] * len(some), root=root)
            looks += self.looks_of(
                [
                    replace(row, questions=(*row.questions[:-1], replace(row.questions[-1], output=answer.text)))
                    for row, answer in zip(some, answers, strict=True)
                    if answer is not None
                ],
                root=root,
            )
        return looks

    @torch.no_grad()
    def looks_of(self, rows: Sequence[Row], *, root: Path | None = None) -> list[Look]:
        """Where the answers to rows' last questions looked; each row has one clip, and its answers.

        The text is run once more with the answer in it: the position before a token is the one that says it. Left out
        are rows whose answer reads much longer than it was written: of ids that no text gives.
        """
        front, (decoder,) = self._front, self.model.chunks
        style, longest = STYLES[self.config.data.text_style], self.stage.max_text_tokens + self.decoding.max_new_tokens
        texts: list[RowText] = []
        for row in rows:
            with suppress(TooLong):
                texts.append(render(row, self.tokenizer, longest, style=style))
        if not texts:
            return []
        batch = self._batch(texts, root)
        (text,) = batch.text.rows
        with recorded(decoder) as layers:
            decoder.logits(text, audio_keys(front, batch.audio, text.clips), front.added_rows)
        weights_BSL, looks = torch.stack(layers).mean(0), []
        for b, said in enumerate(texts):
            windows = batch.audio.clip_windows[text.clips[b][0]]
            label_S = text.labels_BS[b].clone()
            label_S[: (text.ids_BS[b] == self.tokenizer.separator_id).nonzero()[-1]] = IGNORED  # earlier answers
            spoken_S = (label_S != IGNORED) & (label_S != self.tokenizer.eos_id)  # never reached when answering
            looks.append(
                Look(
                    prompt=said.row.questions[-1].prompt,
                    tokens=tuple(
                        self.tokenizer.decode([token], skip_special=False) for token in label_S[spoken_S].tolist()
                    ),
                    weights_TL=weights_BSL[b, spoken_S, : windows * front.tokens_per_window].double().numpy(),
                    token_seconds_L=token_seconds(self.config.model, windows),
                    seconds=self._heard_seconds(windows),
                    row=said.row.id,
                )
            )
        return looks

    def _heard_seconds(self, windows: int) -> float:
        front = self.config.model.front_end
        return windows * (front.window_seconds - front.overlap_seconds) + front.overlap_seconds

    def _batch(self, texts: Sequence[RowText], root: Path | None) -> StepBatch[TextBatch]:
        """One micro-batch of rows with their audio: nothing is drawn, nothing is replaced."""
        audio, heard = hear(self._below(root), [text.row for text in texts])
        samples = [Sample(row=text.row, dataset=0, text=text) for text in texts]
        rows = [packed_row([sample], [clips]) for sample, clips in zip(samples, heard, strict=True)]
        immediate = self.config.model.cross_attention.immediate
        text = text_batch(rows, self.tokenizer, len(rows), length_multiple=1, immediate=immediate)
        return StepBatch(audio=audio, text=text, sample_ids=tuple(text.row.id for text in texts))

    def close(self) -> None:
        """Ends its threads and leaves the process groups."""
        self._loader.close()
        process_groups.destroy()
