"""A trained stage that answers questions about rows, shared among data-parallel ranks.

    listener = Listener(config)                    # newest checkpoint of config.stage; process group exists
    answers = listener(rows)                       # to each row's last question; all ranks get all
    looks = listener.looks(rows)                   # where the answers to rows of one question and one clip looked
    listener.close()

What comes before a row's last question, turns of a dialogue or examples with their clips, is read and never answered:
``Row.each_question`` makes rows of all questions.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import batched, groupby
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_af.config import Config, ConfigError, ParallelConfig
from megatron_af.data.answer_texts import packed_row, text_batch
from megatron_af.data.batch import IGNORED, StepBatch, TextBatch
from megatron_af.data.clips import ClipLoader
from megatron_af.data.rows import Row
from megatron_af.data.sample_source import Sample
from megatron_af.data.stream import hear
from megatron_af.data.templates import STYLES, RowText, TooLong, render
from megatron_af.inference.attention import Look, recorded, token_seconds
from megatron_af.inference.greedy import audio_keys, greedy_answers
from megatron_af.model import AudioFront, Vocabulary, build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import resolve_entry
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.checkpoint import load_parts

HEARD_TOGETHER = 16
"""Recordings whose questions are answered in one batch; questions about one recording are never parted."""


class Listener:
    """Every rank holds the whole model, whatever layout it was trained in.

    Args:
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
        watch: Callable[[int], None] = lambda questions: None,
    ) -> None:
        self.config = replace(config, parallel=ParallelConfig())
        self.watch = watch
        self.stage = config.curriculum[config.stage]
        if self.stage.objective != "answer":
            raise ConfigError("nothing to ask", [f"stage = {config.stage}: its objective gives no answers"])
        self.max_new_tokens = config.evaluation.max_answer_tokens
        self.tokenizer = Tokenizer.load(config.data.tokenizer)
        checkpoint = checkpoint or resolve_entry(config, config.stage)
        device = current_device()
        self.groups = process_groups.initialize(self.config.parallel, config.seed)
        vocabulary = Vocabulary(first_added_id=self.tokenizer.first_added_id, num_added=self.tokenizer.num_added)
        self.model = build(self.config, vocabulary, device)
        load_parts(self.model, self.groups, checkpoint, spec_of(self.stage).parts)
        self._loader = ClipLoader(self.config, max_windows=self.stage.max_windows, device=device)

    def prompt(self, row: Row) -> RowText:
        """What the model reads of a row before it answers the last question.

        Raises:
            TooLong: that question does not fit into ``max_text_tokens``, even without what comes before it.
        """
        style = STYLES[self.config.data.text_style]
        return render(row, self.tokenizer, self.stage.max_text_tokens, style=style, prompt=True)

    def __call__(self, rows: Sequence[Row], *, root: Path | None = None, max_new_tokens: int = 0) -> list[str | None]:
        """The answer to each row's last question; None where that is too long to be asked. A collective.

        Args:
            root: where the rows' clips lie; default: below ``data.root``.
            max_new_tokens: of each answer; default: ``evaluation.max_answer_tokens``.

        Raises:
            AudioError: a clip cannot be decoded.
        """
        together = [list(group) for _, group in groupby(range(len(rows)), key=lambda i: rows[i].clips or i)]
        own: dict[int, str | None] = {}
        for some in batched(together[dist.get_rank() :: dist.get_world_size()], HEARD_TOGETHER):
            places = [place for group in some for place in group]
            answers = self._answers([rows[place] for place in places], root, max_new_tokens or self.max_new_tokens)
            own |= dict(zip(places, answers, strict=True))
            self.watch(len(places))
        shares: list[dict[int, str | None]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(shares, own)
        merged = {place: answer for share in shares for place, answer in share.items()}
        return [merged[place] for place in range(len(rows))]

    @torch.no_grad()
    def looks(self, rows: Sequence[Row]) -> list[Look]:
        """Answers rows of one clip and one question, on this rank alone, and says where each answer looked.

        The text is run once more with the answer in it: the position before a token is the one that says it. Rows
        whose question is too long are left out, and those whose answer reads much longer than it was written: of ids
        that no text gives.
        """
        front, (decoder,) = self.model.front, self.model.chunks
        assert isinstance(front, AudioFront)
        style, longest = STYLES[self.config.data.text_style], self.stage.max_text_tokens + self.max_new_tokens
        looks: list[Look] = []
        for some in batched(rows, HEARD_TOGETHER):
            texts: list[RowText] = []
            for row, answer in zip(some, self._answers(some, None, self.max_new_tokens), strict=True):
                if answer is not None:
                    answered = replace(row, questions=(replace(row.questions[0], output=answer),))
                    with suppress(TooLong):
                        texts.append(render(answered, self.tokenizer, longest, style=style))
            if not texts:
                continue
            batch = self._batch(texts, None)
            (text,) = batch.text.rows
            with recorded(decoder) as layers:
                decoder.logits(text, audio_keys(front, batch.audio, text), front.added_rows)
            weights_BSL = torch.stack(layers).mean(0)
            for b, said in enumerate(texts):
                windows = batch.audio.clip_windows[text.clips[b][0]]
                label_S = text.labels_BS[b]
                spoken_S = (label_S != IGNORED) & (label_S != self.tokenizer.eos_id)  # never reached when answering
                looks.append(
                    Look(
                        prompt=said.row.questions[0].prompt,
                        tokens=tuple(
                            self.tokenizer.decode([token], skip_special=False) for token in label_S[spoken_S].tolist()
                        ),
                        weights_TL=weights_BSL[b, spoken_S, : windows * front.tokens_per_window].double().numpy(),
                        token_seconds_L=token_seconds(self.config.model, windows),
                        seconds=self._heard_seconds(windows),
                    )
                )
        return looks

    def _heard_seconds(self, windows: int) -> float:
        front = self.config.model.front_end
        return windows * (front.window_seconds - front.overlap_seconds) + front.overlap_seconds

    def _answers(self, rows: Sequence[Row], root: Path | None, max_new_tokens: int) -> list[str | None]:
        """One answer a row, all of them in one batch, on this rank alone."""
        prompts: dict[int, RowText] = {}
        for place, row in enumerate(rows):
            with suppress(TooLong):
                prompts[place] = self.prompt(row)
        answers: list[str | None] = [None] * len(rows)
        if prompts:
            batch = self._batch(list(prompts.values()), root)
            found = greedy_answers(self.model, batch, self.tokenizer, max_new_tokens=max_new_tokens)
            for place, answer in zip(prompts, found, strict=True):
                answers[place] = answer
        return answers

    def _batch(self, texts: Sequence[RowText], root: Path | None) -> StepBatch[TextBatch]:
        """One micro-batch of rows with their audio: nothing is drawn, nothing is replaced."""
        loader = self._loader if root is None else self._loader.below(root)
        audio, heard = hear(loader, [text.row for text in texts])
        samples = [Sample(row=text.row, dataset=0, text=text) for text in texts]
        rows = [packed_row([sample], [clips]) for sample, clips in zip(samples, heard, strict=True)]
        immediate = self.config.model.cross_attention.immediate
        text = text_batch(rows, self.tokenizer, len(rows), length_multiple=1, immediate=immediate)
        return StepBatch(audio=audio, text=text, sample_ids=tuple(text.row.id for text in texts))

    def close(self) -> None:
        """Ends its threads and leaves the process groups."""
        self._loader.close()
        process_groups.destroy()
