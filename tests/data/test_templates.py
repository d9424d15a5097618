"""Audio Flamingo 2's single template, its labels, and cutting."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from megatron_af.data import templates
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.data.templates import STYLES, RowText, TooLong, UnknownWords, answer_labels
from megatron_af.data.templates import render as render_text
from megatron_af.text.tokenizer import Tokenizer
from tests.examples import run_example
from tests.text.toy_tokenizer import toy_base, toy_tokenizer, words_tokenizer

TOKENIZER = toy_tokenizer()


def render(row: Row, tokenizer: Tokenizer, max_tokens: int, **how: Any) -> tuple[list[int], ...]:
    return render_text(row, tokenizer, max_tokens, **how).segments


CLIP = Clip(path="a.wav", duration=1.0)


def row(*questions: Question, clips: int = 1) -> Row:
    return Row(id="r", clips=(CLIP,) * clips, questions=questions)


def test_single_template_is_the_papers_string() -> None:
    r = row(Question(prompt=" What is HEARD? ", output="Rain. "))
    (ids,) = render(r, TOKENIZER, 512)
    text = TOKENIZER.decode(ids, skip_special=False)
    assert text == "<audio>what is heard?<SEP>rain.<|endofchunk|><|endoftext|>"
    (prompt,) = render(r, TOKENIZER, 512, prompt=True)
    assert ids[: len(prompt)] == prompt and prompt[-1] == TOKENIZER.separator_id


def test_the_example_runs() -> None:
    r = row(Question(prompt="what?", output="rain"))
    ids = np.array([render(r, TOKENIZER, 512)[0]])
    names = run_example(templates, row=r, tokenizer=TOKENIZER, ids_BS=ids, segment_BS=np.zeros_like(ids))
    assert names["text"].segments[0] == ids[0, : len(names["text"].segments[0])].tolist()
    assert (names["labels_BS"] >= 0).sum() == len("rain") + 2


def test_text_only_rows_have_no_audio_token() -> None:
    r = row(Question(prompt="2+2?", output="4"), clips=0)
    assert TOKENIZER.decode(render(r, TOKENIZER, 512)[0], skip_special=False).startswith("2+2?<SEP>4")


def test_labels_are_answer_end_of_chunk_and_eos_shifted_by_one() -> None:
    r = row(Question(prompt="what?", output="rain"), Question(prompt="how?", output="hard"))
    segments = render(r, TOKENIZER, 512)
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
        (ids,) = render(r, TOKENIZER, 512)
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


def test_a_question_that_does_not_fit_is_left_out_and_never_cut() -> None:
    long, short = Question(prompt="abcdefghij" * 10, output="the answer"), Question(prompt="what?", output="rain")
    text = render_text(row(long, short, long), TOKENIZER, 30)
    assert [text_of(ids) for ids in text.segments] == ["<audio>what?<SEP>rain<|endofchunk|><|endoftext|>"]
    assert text == RowText(row=row(short), segments=text.segments, too_long=2)
    exact = len("abcdefghij" * 10 + "the answer") + 4
    assert len(render(row(long), TOKENIZER, exact)[0]) == exact
    with pytest.raises(TooLong, match=rf"row r: its question and answer take {exact} tokens, .*max_text_tokens is 113"):
        render(row(long), TOKENIZER, exact - 1)
    with pytest.raises(TooLong) as error:
        render(row(long, long), TOKENIZER, 30)
    assert error.value.questions == 2
    with pytest.raises(TooLong, match="row r: its question takes 102 tokens"):
        render(row(long), TOKENIZER, 101, prompt=True)


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
    (ids,) = render(r, TOKENIZER, 512)
    assert text_of(ids) == (
        "Here are similar examples. <audio>what 0?<SEP>out 0<|endofchunk|><audio>what 1?<SEP>out 1<|endofchunk|>"
        "<audio>what 2?<SEP>out 2<|endofchunk|><|endoftext|>"
    )
    (ids,) = render(replace(r, template="interleaved_random"), TOKENIZER, 512)
    assert text_of(ids).startswith("Here are random examples. <audio>what 0?<SEP>out 0<|endofchunk|><audio>what 1?")
    r = dialogue_row()
    (ids,) = render(r, TOKENIZER, 512)
    assert text_of(ids) == (
        "The task is dialog. <audio>user: What is it? \nassistant: <SEP>A Dog.<|endofchunk|><|endoftext|>\n"
        "user: How many? \nassistant: <SEP>Two.<|endofchunk|><|endoftext|>\n"
    )


def test_templates_of_audio_flamingo_1() -> None:
    tokenizer = opt_tokenizer()
    style = STYLES["af1"]
    r = Row(id="s", clips=(CLIP,), questions=(Question(prompt="What?", output="Rain"),), task="audio captioning")
    (ids,) = render(r, tokenizer, 512, style=style, task_prefix=True)
    assert text_of(ids, tokenizer) == (
        "</s></s>The task is audio captioning. <audio>what?\nAnswer:<SEP>rain<|endofchunk|></s>"
    )
    (ids,) = render(r, tokenizer, 512, style=style)
    assert text_of(ids, tokenizer).startswith("</s></s><audio>what?")
    r = interleaved_row()
    (ids,) = render(r, tokenizer, 512, style=style, task_prefix=True)
    assert text_of(ids, tokenizer).startswith(
        "</s></s>Here are similar examples. The task is Music Captioning. <audio>what 0?\nAnswer:<SEP>out 0<"
    )
    r = dialogue_row()
    (ids,) = render(r, tokenizer, 512, style=style)
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
    (ids,) = render(r, TOKENIZER, 512)
    labels = answer_labels(np.array([ids]), np.zeros((1, len(ids)), int), TOKENIZER)[0]
    supervised = text_of(labels[labels != -100].tolist())
    end = "<|endofchunk|><|endoftext|>" if r.template == "dialogue" else "<|endofchunk|>"
    answers = [q.output if r.template == "dialogue" else q.output.lower() for q in r.questions]
    expected = "".join(a + end for a in answers)
    assert supervised == (expected if r.template == "dialogue" else expected + "<|endoftext|>")


@pytest.mark.parametrize("make", [interleaved_row, dialogue_row])
def test_prompts_hold_what_comes_before_their_question(make: Callable[[], Row]) -> None:
    r = make()
    (full,) = render(r, TOKENIZER, 512)
    for number in range(1, len(r.questions) + 1):
        asked = replace(r, questions=r.questions[:number])
        (prompt,) = render(asked, TOKENIZER, 512, prompt=True)
        assert prompt == full[: len(prompt)] and prompt[-1] == TOKENIZER.separator_id
        assert prompt.count(TOKENIZER.separator_id) == number


def test_an_example_that_equals_the_question_is_not_taken_for_it() -> None:
    """Few-shot classification at its best: the nearest recordings have the same prompt and the same answer."""
    same = Question(prompt="What is it?", output="Dog")
    r = Row(id="i", clips=(CLIP,) * 3, questions=(same, same, same), template="interleaved")
    (asked,) = r.each_question()
    text = render_text(asked, TOKENIZER, 512, prompt=True)
    assert text_of(text.segments[0]) == (
        "Here are similar examples. " + "<audio>what is it?<SEP>dog<|endofchunk|>" * 2 + "<audio>what is it?<SEP>"
    )
    assert text.row.clips == r.clips


def test_a_repeated_turn_keeps_the_history() -> None:
    again, other = Question(prompt="And now?", output="Rain."), Question(prompt="How loud?", output="Very.")
    r = Row(id="d", clips=(CLIP,), questions=(again, other, again), template="dialogue")
    prompts = [text_of(render(asked, TOKENIZER, 512, prompt=True)[0]) for asked in r.each_question()]
    assert [prompt.count("<SEP>") for prompt in prompts] == [1, 2, 3]
    assert prompts[2].startswith("The task is dialog. <audio>user: And now? \nassistant: <SEP>Rain.<")
    assert prompts[2].endswith("\nuser: And now? \nassistant: <SEP>")


def test_each_question_of_a_row_is_asked_where_it_stands() -> None:
    single = row(*(Question(prompt=p, output="o") for p in "abb"))
    assert [r.questions for r in single.each_question()] == [(q,) for q in single.questions]
    assert single.own_clips == single.clips
    examples = interleaved_row()
    assert examples.each_question() == [examples] and examples.own_clips == examples.clips[-1:]
    assert [len(r.questions) for r in dialogue_row().each_question()] == [1, 2]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("template", ["interleaved", "interleaved_random", "dialogue"])
def test_over_long_rows_lose_their_oldest_examples_or_turns_and_never_the_question(template: str, prompt: bool) -> None:
    pairs = tuple(Question(prompt=f"question {n}?", output=f"answer {n}") for n in range(4))
    clips = tuple(Clip(path=f"{n}.wav", duration=1.0) for n in range(4))
    r = Row(id="i", clips=clips if template != "dialogue" else clips[:1], questions=pairs, template=template)
    kept = [len(render(replace(r, questions=pairs[n:], clips=clips[n:]), TOKENIZER, 512, prompt=prompt)[0])
            for n in range(4)]  # fmt: skip
    if template == "dialogue":
        kept = [len(render(replace(r, questions=pairs[n:]), TOKENIZER, 512, prompt=prompt)[0]) for n in range(4)]
    for dropped, room in [(0, kept[0]), (1, kept[0] - 1), (1, kept[1]), (3, kept[2] - 1), (3, kept[3])]:
        text = render_text(r, TOKENIZER, room, prompt=prompt)
        assert (text.shortened, text.row.questions) == (dropped, pairs[dropped:])
        assert text.row.clips == (r.clips if template == "dialogue" else clips[dropped:])
        (ids,) = text.segments
        assert ids.count(TOKENIZER.audio_id) == len(text.row.clips)
        written = text_of(ids)
        assert "question 3?" in written and ("answer 3" in written) is not prompt
        assert all(f"question {n}?" not in written for n in range(dropped))
    with pytest.raises(TooLong, match=rf"row i: .* {kept[3]} tokens"):
        render(r, TOKENIZER, kept[3] - 1, prompt=prompt)


@pytest.mark.parametrize("template", ["single", "interleaved", "dialogue"])
def test_an_answer_is_never_taught_as_an_unknown_word(template: str) -> None:
    """Else cat and dog become one target. What a question says may be unknown, and a prompt asks for no answer."""
    tokenizer = words_tokenizer("a", "dog", "what", "?")
    known = Question(prompt="what meows ?", output="A dog")
    unknown = Question(prompt="what ?", output="a cat and a cat")
    questions = (known, unknown) if template != "single" else (unknown,)
    asked = replace(row(*questions, clips=2 if template == "interleaved" else 1), template=template)
    if template == "dialogue":
        asked = replace(asked, questions=(replace(known, output="a dog"), unknown))
    with pytest.raises(UnknownWords, match=r"row r: the tokenizer has no 'cat', 'and', .*\(data\.tokenizer\)") as error:
        render(asked, tokenizer, 512)
    assert error.value.words == ("cat", "and")
    assert render(asked, tokenizer, 512, prompt=True)
    assert render(replace(asked, questions=(*asked.questions[:-1], replace(unknown, output="a dog"))), tokenizer, 512)
