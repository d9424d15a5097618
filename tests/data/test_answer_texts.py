"""The answering side of a batch: which questions a row is asked, and how its rows share text rows and clips."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, StageConfig
from megatron_af.data.answer_texts import AnswerTexts, chosen_questions, packed_row
from megatron_af.data.rows import Manifest, Question, Row, RowError
from megatron_af.data.sample_source import Sample
from megatron_af.data.sampler import Draw
from megatron_af.data.templates import RowText
from megatron_af.text.tokenizer import Tokenizer
from tests.data.toy import toy_config

STAGE = StageConfig(global_batch_samples=8, micro_batch_samples=2, questions_per_sample=2)


def row(questions: int, template: str = "single") -> Row:
    asked = tuple(Question(prompt=f"p{i}?", output=f"o{i}") for i in range(questions))
    return Row(id="r", questions=asked, template=template)


def draw(dataset_pass: int = 0, at: int = 5, **changes: object) -> Draw:
    return Draw(index=dataset_pass * 100 + at, dataset="a", row=at, dataset_pass=dataset_pass, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("total", "count"), [(3, 2), (4, 2), (5, 2), (7, 3), (3, 1)])
def test_over_the_passes_every_question_is_asked_equally_often(total: int, count: int) -> None:
    asked: Counter[str] = Counter()
    for dataset_pass in range(total):
        chosen = chosen_questions(row(total), draw(dataset_pass), count)
        assert len({q.prompt for q in chosen}) == count
        asked.update(q.prompt for q in chosen)
        often = [asked[f"p{i}?"] for i in range(total)]
        assert max(often) - min(often) <= 1, "none comes again before the others came"
    assert set(asked.values()) == {count}


def test_rows_begin_at_different_questions() -> None:
    firsts = Counter(chosen_questions(row(4), draw(at=at), 1)[0].prompt for at in range(400))
    assert len(firsts) == 4 and min(firsts.values()) > 60


def test_what_belongs_together_is_never_chosen_from() -> None:
    for template in ("interleaved", "dialogue"):
        assert chosen_questions(row(4, template), draw(), 2) == row(4, template).questions
    assert chosen_questions(row(2), draw(), 2) == row(2).questions  # as many as are asked for: in their order
    with pytest.raises(RowError, match="row r: no question to answer"):
        chosen_questions(row(0), draw(), 2)


def texts_of(config: Config, **changes: object) -> AnswerTexts:
    stage = replace(config.curriculum["tune"], **changes)  # type: ignore[arg-type]
    return AnswerTexts(config, stage, Tokenizer.load(config.data.tokenizer))


def samples_of(config: Config, texts: AnswerTexts, rows: list[Row]) -> list[Sample]:
    found = []
    for at, one in enumerate(rows):
        heard, said = texts.of(one, draw(at=at))
        found.append(Sample(row=heard, dataset=at % 2, text=said))
    return found


def test_a_prefix_is_written_as_often_as_the_data_set_asks(tmp_path: Path) -> None:
    config = toy_config(tmp_path, STAGE)
    one = replace(next(iter(Manifest(tmp_path / "data/a.jsonl"))), task="aqa")

    def share(probability: float) -> float:
        sets = {"a": replace(config.data.datasets["a"], task_prefix_probability=probability)}
        texts = texts_of(replace(config, data=replace(config.data, datasets=sets)))
        plain = texts_of(config)
        different = [texts.of(one, draw(at=at))[1] != plain.of(one, draw(at=at))[1] for at in range(200)]
        return sum(different) / 200

    assert share(0.0) == 0 and share(1.0) == 1 and 0.3 < share(0.5) < 0.7


def test_samples_side_by_side_keep_their_own_clips_and_data_set() -> None:
    one, silent, other = (
        Sample(row=row(1), dataset=dataset, text=RowText(row=row(1), segments=segments))
        for dataset, segments in ((0, ([1, 2, 3], [4])), (1, ([7],)), (3, ([5, 6],)))
    )
    packed = packed_row([one, silent, other], [(8, 9), (), (2,)])
    assert packed.clips == (8, 9, 2)
    found = [(s.ids, s.first_audio, s.num_audios, s.dataset) for s in packed.segments]
    assert found == [([1, 2, 3], 0, 2, 0), ([4], 0, 2, 0), ([7], 2, 0, 1), ([5, 6], 2, 1, 3)]


def test_a_batch_holds_every_token_once_packed_or_not(tmp_path: Path) -> None:
    config = toy_config(tmp_path, STAGE)
    rows = list(Manifest(tmp_path / "data/a.jsonl"))[:8]
    for pack_tokens in (0, 400):
        texts = texts_of(config, pack_tokens=pack_tokens)
        samples = samples_of(config, texts, rows)
        heard = [tuple(range(2 * i, 2 * i + len(s.row.clips))) for i, s in enumerate(samples)]
        batch = texts.collate(samples, heard, [1] * 16)
        said = sorted(tuple(ids) for sample in samples for ids in sample.text.segments)
        assert all(text.ids_BS.shape[0] <= 2 for text in batch.rows)
        found = sorted(
            tuple(ids[segments == segment].tolist())
            for text in batch.rows
            for ids, segments in zip(text.ids_BS, text.segment_BS, strict=True)
            for segment in segments.unique().tolist()
            if segment >= 0
        )
        assert found == said and batch.num_tokens == sum(map(len, said))
        clips = sorted(clip for text in batch.rows for own in text.clips for clip in own)
        assert clips == sorted(clip for own in heard for clip in own)
        packed_rows = sum(len(text.clips) for text in batch.rows)
        assert (packed_rows == 8) == (not pack_tokens)
