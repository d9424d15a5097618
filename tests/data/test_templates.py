"""Audio Flamingo 2's single template, its labels, and cutting."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from megatron_af.data.rows import Clip, Question, Row, RowError
from megatron_af.data.templates import STYLES, answer_labels, render, render_prompt
from megatron_af.text.tokenizer import Tokenizer
from tests.text.toy_tokenizer import toy_base, toy_tokenizer

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
    with pytest.raises(RowError, match=r"row r: its answers and 1 clips take 14 tokens, stage.max_text_tokens"):
        render(r, r.questions, TOKENIZER, 13)


def dialogue_row() -> Row:
    turns = (Question(prompt="What is it?", output="A Dog."), Question(prompt="How many?", output="Two."))
    return Row(id="d", clips=(CLIP,), questions=turns, template="dialogue")


def interleaved_row() -> Row:
    pairs = tuple(Question(prompt=f"What {i}?", output=f"Out {i}") for i in range(3))
    return Row(id="i", clips=(CLIP,) * 3, questions=pairs, template="interleaved", task="Music Captioning")


def opt_tokenizer() -> Tokenizer:
    base = toy_base()
    base.add_special_tokens(["<pad>", "</s>"])
    return Tokenizer(base, eos="</s>")


def text_of(ids: list[int], tokenizer: Tokenizer = TOKENIZER) -> str:
    return tokenizer.decode(ids, skip_special=False)


def test_interleaved_and_dialogue_templates_of_audio_flamingo_2() -> None:
    r = interleaved_row()
    (ids,) = render(r, r.questions, TOKENIZER, 512)
    assert text_of(ids) == (
        "Here are similar examples. <audio>what 0?<SEP>out 0<|endofchunk|><audio>what 1?<SEP>out 1<|endofchunk|>"
        "<audio>what 2?<SEP>out 2<|endofchunk|><|endoftext|>"
    )
    (ids,) = render(replace(r, template="interleaved_random"), r.questions, TOKENIZER, 512)
    assert text_of(ids).startswith("Here are random examples. <audio>what 0?<SEP>out 0<|endofchunk|><audio>what 1?")
    r = dialogue_row()
    (ids,) = render(r, r.questions, TOKENIZER, 512)
    assert text_of(ids) == (
        "The task is dialog. <audio>user: What is it? \nassistant: <SEP>A Dog.<|endofchunk|><|endoftext|>\n"
        "user: How many? \nassistant: <SEP>Two.<|endofchunk|><|endoftext|>\n"
    )


def test_templates_of_audio_flamingo_1() -> None:
    tokenizer = opt_tokenizer()
    style = STYLES["af1"]
    r = Row(id="s", clips=(CLIP,), questions=(Question(prompt="What?", output="Rain"),), task="audio captioning")
    (ids,) = render(r, r.questions, tokenizer, 512, style=style, task_prefix=True)
    assert text_of(ids, tokenizer) == (
        "</s></s>The task is audio captioning. <audio>what?\nAnswer:<SEP>rain<|endofchunk|></s>"
    )
    (ids,) = render(r, r.questions, tokenizer, 512, style=style)
    assert text_of(ids, tokenizer).startswith("</s></s><audio>what?")
    r = interleaved_row()
    (ids,) = render(r, r.questions, tokenizer, 512, style=style, task_prefix=True)
    assert text_of(ids, tokenizer).startswith(
        "</s></s>Here are similar examples. The task is Music Captioning. <audio>what 0?\nAnswer:<SEP>out 0<"
    )
    r = dialogue_row()
    (ids,) = render(r, r.questions, tokenizer, 512, style=style)
    assert text_of(ids, tokenizer).startswith(
        "</s></s>The task is dialog. <audio>user: What is it? \nassistant: <SEP>A"
    )


def test_opt_keeps_its_pad_and_its_vocabulary_size() -> None:
    tokenizer = opt_tokenizer()
    assert tokenizer.added == {"<audio>": 259, "<|endofchunk|>": 260, "<SEP>": 261}
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (257, 258, 258)
    assert TOKENIZER.bos_id is None


@pytest.mark.parametrize("make", [interleaved_row, dialogue_row])
def test_every_answer_of_a_segment_is_supervised(make: Callable[[], Row]) -> None:
    r = make()
    (ids,) = render(r, r.questions, TOKENIZER, 512)
    labels = answer_labels(np.array([ids]), np.zeros((1, len(ids)), int), TOKENIZER)[0]
    supervised = text_of(labels[labels != -100].tolist())
    end = "<|endofchunk|><|endoftext|>" if r.template == "dialogue" else "<|endofchunk|>"
    answers = [q.output if r.template == "dialogue" else q.output.lower() for q in r.questions]
    expected = "".join(a + end for a in answers)
    assert supervised == (expected if r.template == "dialogue" else expected + "<|endoftext|>")


def test_prompts_hold_the_history() -> None:
    for r in (interleaved_row(), dialogue_row()):
        (full,) = render(r, r.questions, TOKENIZER, 512)
        for question in r.questions:
            prompt = render_prompt(r, question, TOKENIZER, 512)
            assert prompt == full[: len(prompt)] and prompt[-1] == TOKENIZER.separator_id


def test_long_interleaved_rows_lose_prompts_and_long_dialogues_lose_turns() -> None:
    pairs = tuple(Question(prompt="p" * n, output=f"answer {n}") for n in (5, 80, 100))
    r = Row(id="i", clips=(CLIP,) * 3, questions=pairs, template="interleaved")
    (ids,) = render(r, pairs, TOKENIZER, 150, style=STYLES["af1"])
    text = text_of(ids)
    assert len(ids) in (149, 150) and all(f"<SEP>answer {n}<" in text for n in (5, 80, 100))
    assert "<audio>ppppp\nAnswer:<SEP>" in text and text.count("\nAnswer:<SEP>") == 3
    r = dialogue_row()
    (ids,) = render(r, r.questions, TOKENIZER, 80)
    assert text_of(ids).endswith("<SEP>A Dog.<|endofchunk|><|endoftext|>\n") and "How many" not in text_of(ids)
    (ids,) = render(r, r.questions, TOKENIZER, 52)
    assert text_of(ids).startswith("The task is dialog. <audio>user: Wh") and " \nassistant: <SEP>A Dog.<" in text_of(
        ids
    )
    assert len(ids) == 52
    with pytest.raises(RowError, match="its answers"):
        render(r, r.questions, TOKENIZER, 20)
