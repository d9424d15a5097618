"""A trained stage that answers questions about rows, shared among data-parallel ranks.

listener = Listener(config)                    # newest checkpoint of config.stage; process group exists
answers = listener(rows)                       # one per question, rows first, then questions; all ranks get all
looks = listener.looks(rows)                   # where the answers to rows of one question and one clip looked
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch
import torch.distributed as dist

from megatron_af.config import Config, ConfigError, ParallelConfig
from megatron_af.data.batch import IGNORED, StepBatch, TextBatch
from megatron_af.data.rows import Row
from megatron_af.data.stream import evaluation_batches
from megatron_af.inference.attention import Look, recorded, token_seconds
from megatron_af.inference.greedy import audio_keys, greedy_answers
from megatron_af.model import AudioFront, Vocabulary, build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import resolve_entry
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.checkpoint import load_parts

BATCH_ROWS = 16


class Listener:
    """Every rank holds the whole model, whatever layout it was trained in.

    Args:
        watch: told, after each batch, how many questions this rank has answered in it.
    """

    def __init__(self, config: Config, watch: Callable[[int], None] = lambda questions: None) -> None:
        self.config = replace(config, parallel=ParallelConfig())
        self.watch = watch
        self.stage = config.curriculum[config.stage]
        if self.stage.objective != "answer":
            raise ConfigError("nothing to ask", [f"stage = {config.stage}: its objective gives no answers"])
        self.max_new_tokens = config.evaluation.max_answer_tokens
        self.device = current_device()
        self.tokenizer = Tokenizer.load(config.data.tokenizer)
        self.groups = process_groups.initialize(self.config.parallel, config.seed)
        vocabulary = Vocabulary(first_added_id=self.tokenizer.first_added_id, num_added=self.tokenizer.num_added)
        self.model = build(self.config, vocabulary, self.device)
        load_parts(self.model, self.groups, resolve_entry(config, config.stage), spec_of(self.stage).parts)

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        mine = list(range(dist.get_rank(), len(rows), dist.get_world_size()))
        answers = iter(self._answers([rows[i] for i in mine], self.watch))
        own = {i: [next(answers) for _ in rows[i].questions] for i in mine}
        shares: list[dict[int, list[str]]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(shares, own)
        merged = {i: texts for share in shares for i, texts in share.items()}
        return list(chain.from_iterable(merged[i] for i in range(len(rows))))

    @torch.no_grad()
    def looks(self, rows: Sequence[Row]) -> list[Look]:
        """Answers rows of one clip and one question, on this rank alone, and says where each answer looked.

        The text is run once more with the answer in it: the position before a token is the one that says it.
        """
        front, (decoder,) = self.model.front, self.model.chunks
        assert isinstance(front, AudioFront)
        answered = [
            replace(row, questions=(replace(row.questions[0], output=answer),))
            for row, answer in zip(rows, self._answers(rows), strict=True)
        ]
        looks: list[Look] = []
        for chunk, batch in self._batches(answered, prompts=False):
            (text,) = batch.text.rows
            with recorded(decoder) as layers:
                decoder.logits(text, audio_keys(front, batch.audio, text), front.added_rows)
            weights_BSL = torch.stack(layers).mean(0)
            for b, row in enumerate(chunk):
                windows = batch.audio.clip_windows[text.clips[b][0]]
                label_S = text.labels_BS[b]
                spoken_S = (label_S != IGNORED) & (label_S != self.tokenizer.eos_id)  # never reached when answering
                looks.append(
                    Look(
                        prompt=row.questions[0].prompt,
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

    def _answers(self, rows: Sequence[Row], watch: Callable[[int], None] = lambda questions: None) -> list[str]:
        answers: list[str] = []
        for chunk, batch in self._batches(rows, prompts=True):
            answers += greedy_answers(self.model, batch, self.tokenizer, max_new_tokens=self.max_new_tokens)
            watch(sum(len(row.questions) for row in chunk))
        return answers

    def _batches(self, rows: Sequence[Row], *, prompts: bool) -> Iterator[tuple[list[Row], StepBatch[TextBatch]]]:
        return evaluation_batches(
            self.config,
            rows,
            tokenizer=self.tokenizer,
            device=self.device,
            max_windows=self.stage.max_windows,
            max_text_tokens=self.stage.max_text_tokens,
            batch_rows=BATCH_ROWS,
            prompts=prompts,
        )

    def close(self) -> None:
        process_groups.destroy()
