"""Audio Flamingo 2's single template, its labels, and cutting."""

import numpy as np
import pytest

from megatron_af.data.rows import Clip, Question, Row, RowError
from megatron_af.text.templates import answer_labels, render, render_prompt
from tests.text.toy_tokenizer import toy_tokenizer

TOKENIZER = toy_tokenizer()
CLIP = Clip(path="a.wav", duration=1.0)


def row(*questions: Question, clips: int = 1) -> Row:
    return Row(id="r", clips=(CLIP,) * clips, questions=questions)


def test_single_template_is_the_papers_string() -> None:
    r = row(Question(prompt=" What is HEARD? ", output="Rain. "))
    (ids,) = render(r, r.questions, TOKENIZER, 512)
    text = TOKENIZER.decode(ids, skip_special=False)
    assert text == "<audio>what is heard?<SEP>rain.<|endofchunk|><|endoftext|>"
    prompt = render_prompt(r, r.questions[0], TOKENIZER, 512)
    assert ids[: len(prompt)] == prompt and prompt[-1] == TOKENIZER.separator_id


def test_text_only_rows_have_no_audio_token() -> None:
    r = row(Question(prompt="2+2?", output="4"), clips=0)
    assert TOKENIZER.decode(render(r, r.questions, TOKENIZER, 512)[0], skip_special=False).startswith("2+2?<SEP>4")


def test_labels_are_answer_end_of_chunk_and_eos_shifted_by_one() -> None:
    r = row(Question(prompt="what?", output="rain"), Question(prompt="how?", output="hard"))
    segments = render(r, r.questions, TOKENIZER, 512)
    ids = np.array([[*segments[0], *segments[1], *[TOKENIZER.pad_id] * 5]])
    segment = np.array([[0] * len(segments[0]) + [1] * len(segments[1]) + [-1] * 5])
    labels = answer_labels(ids, segment, TOKENIZER)
    supervised = labels[0] != -100
    expected = "rain<|endofchunk|><|endoftext|>hard<|endofchunk|><|endoftext|>"
    assert TOKENIZER.decode(labels[0][supervised].tolist(), skip_special=False) == expected
    positions = np.flatnonzero(supervised)
    assert (ids[0][positions + 1] == labels[0][positions]).all()
    begins = [positions[0], positions[6]]
    assert (ids[0][begins] == TOKENIZER.separator_id).all()


def test_labels_match_the_references_loop() -> None:
    """The loop of AF2 train/train_utils.py, restated token by token, on random rows."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        r = row(Question(prompt="p" * int(rng.integers(0, 9)), output="o" * int(rng.integers(1, 9))))
        (ids,) = render(r, r.questions, TOKENIZER, 512)
        row_ids = np.array([ids + [TOKENIZER.pad_id] * int(rng.integers(0, 5))])
        segment = np.where(np.arange(row_ids.shape[1])[None] < len(ids), 0, -1)
        inside, targets = False, []
        for i, token in enumerate(row_ids[0]):
            if token == TOKENIZER.pad_id or i == 0 or token == TOKENIZER.audio_id:
                targets.append(-100)
            elif token == TOKENIZER.separator_id:
                inside = True
                targets.append(-100)
            elif token == TOKENIZER.end_of_chunk_id:
                inside = False
                targets.append(token)
            else:
                targets.append(token if inside or token == TOKENIZER.eos_id else -100)
        assert answer_labels(row_ids, segment, TOKENIZER)[0].tolist() == [*targets[1:], -100]


def test_long_samples_are_cut_in_the_prompt_never_in_the_answer() -> None:
    r = row(Question(prompt="abcdefghij" * 10, output="the answer"))
    (ids,) = render(r, r.questions, TOKENIZER, 30)
    assert len(ids) == 30
    text = TOKENIZER.decode(ids, skip_special=False)
    assert text.endswith("<SEP>the answer<|endofchunk|><|endoftext|>") and text.startswith("<audio>abcdefg")
    with pytest.raises(RowError, match=r"row r: its answer and 1 clips take 14 tokens, stage.max_text_tokens"):
        render(r, r.questions, TOKENIZER, 13)
