"""The exported processor writes the ids that this project writes for the same request, whatever the texts hold."""

from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from megatron_af.config import Config, DataConfig
from megatron_af.convert.huggingface.feature_extraction_audio_flamingo import AudioFlamingoFeatureExtractor
from megatron_af.convert.huggingface.processing_audio_flamingo import AudioFlamingoProcessor
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.data.templates import STYLES, render
from megatron_af.release.export import _exported_tokenizer, chat_template
from megatron_af.text.tokenizer import Tokenizer

SPECIAL = ("<audio>", "<AUDIO>", "<SEP>", "<sep>", "<|endofchunk|>", "<|endoftext|>", "<|im_start|>", "<|PAD_TOKEN|>")
OPTS = ("<pad>", "</s>")
WAVE = [0.0] * 100
CLIP = Clip(path="a.wav", duration=1.0)


def bytes_as_qwens(*special: str) -> Tokenizer:
    """With special tokens of the language model's own."""
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    base = tokenizers.Tokenizer(models.BPE(alphabet | {"he": 256, "us": 257, "sp": 258}, [("h", "e"), ("u", "s")]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    base.add_special_tokens(list(special))
    return Tokenizer(base)


QWEN = bytes_as_qwens("<|endoftext|>", "<|im_start|>")
OPT = bytes_as_qwens(*OPTS)
STYLE_OF = {id(QWEN): "af2", id(OPT): "af1"}


def processor_of(tokenizer: Tokenizer) -> AudioFlamingoProcessor:
    config = Config(name="toy", data=DataConfig(text_style=STYLE_OF[id(tokenizer)]))  # type: ignore[arg-type]
    exported = _exported_tokenizer(config, tokenizer)
    template = chat_template(config, tokenizer)
    return AudioFlamingoProcessor(AudioFlamingoFeatureExtractor(), exported, chat_template=template)


@pytest.fixture(scope="module")
def processor() -> AudioFlamingoProcessor:
    return processor_of(QWEN)


def ids_of(processor: AudioFlamingoProcessor, chat: list[dict[str, Any]]) -> list[int]:
    settings = {"processor_kwargs": {"sampling_rate": 16_000}}
    batch = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True, **settings)
    assert batch["attention_mask"].all()
    ids: list[int] = batch["input_ids"][0].tolist()
    return ids


def user(text: str, *, audio: int = 0) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "audio", "audio": WAVE}] * audio + [{"type": "text", "text": text}]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


HOSTILE = (
    st.lists(st.sampled_from(SPECIAL + OPTS) | st.text(max_size=6), min_size=1, max_size=5)
    .map("".join)
    .filter(lambda text: text.strip() and "\ue000" not in text)
)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [QWEN, OPT], ids=["af2", "af1"])
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(HOSTILE, min_size=3, max_size=3))
def test_every_template_is_written_as_this_project_writes_it(tokenizer: Tokenizer, texts: list[str]) -> None:
    processor, style = processor_of(tokenizer), STYLES[STYLE_OF[id(tokenizer)]]
    first, said, last = texts
    asked = Question(prompt=last, output="")
    before = Question(prompt=first, output=said)
    cases = [
        ([user(last, audio=1)], Row(id="r", clips=(CLIP,), questions=(asked,))),
        ([{"role": "user", "content": last}], Row(id="r", clips=(), questions=(asked,))),
        (
            [user(first, audio=1), assistant(said), user(last)],
            Row(id="r", clips=(CLIP,), questions=(before, asked), template="dialogue"),
        ),
        (
            [user(first, audio=1), assistant(said), user(last, audio=1)],
            Row(id="r", clips=(CLIP, CLIP), questions=(before, asked), template="interleaved"),
        ),
    ]
    for chat, row in cases:
        (expected,) = render(row, tokenizer, 10_000, style=style, prompt=True).segments
        assert ids_of(processor, chat) == expected


def test_a_batch_is_padded_at_the_left_and_knows_whose_windows_are_whose(processor: AudioFlamingoProcessor) -> None:
    long = np.zeros(170_000)
    batch = processor(
        text=["<audio>what?<SEP>", "why<SEP>", "<audio><audio>which of these two?<SEP>"],
        audio=[[WAVE], [], [long, WAVE]],
        sampling_rate=16_000,
    )
    assert batch["window_audio"].tolist() == [[0, -1, -1], [-1, -1, -1], [0, 0, 1]]
    assert batch["input_features"].shape == (3, 3, 1001, 64)
    for mask in batch["attention_mask"]:
        assert mask.any() and mask.tolist() == sorted(mask.tolist())
    pads = batch["input_ids"][batch["attention_mask"] == 0]
    assert (pads == processor.tokenizer.pad_token_id).all() and len(pads)
    moved = batch.to("cpu", torch.bfloat16)
    assert moved["input_features"].dtype == torch.float32, "decibels are not rounded"
    assert moved["input_ids"].dtype == torch.int64
    text_only = processor(text="why<SEP>").to(torch.bfloat16)
    assert set(text_only) == {"input_ids", "attention_mask"} and isinstance(text_only["input_ids"], torch.Tensor)


def test_what_cannot_be_meant_is_refused(processor: AudioFlamingoProcessor) -> None:
    with pytest.raises(ValueError, match="expected a recording for each <audio> in text, got 1 for 2"):
        processor(text="<audio><audio>what?<SEP>", audio=WAVE, sampling_rate=16_000)
    with pytest.raises(Exception, match="expected messages of user and assistant, got one of system"):
        processor.apply_chat_template([{"role": "system", "content": "be brief"}, user("what?")])
    with pytest.raises(Exception, match="expected a recording in every question, or in the first alone"):
        chat = [user("a", audio=1), assistant("b"), user("c", audio=1), assistant("d"), user("e")]
        processor.apply_chat_template(chat)


def test_messages_become_the_training_text(processor: AudioFlamingoProcessor) -> None:
    text = processor.apply_chat_template([[user("What is it? ", audio=2)]], add_generation_prompt=True)
    assert text == ["<audio><audio>what is it?<SEP>"]
    dialogue = processor.apply_chat_template([user("Hi", audio=1), assistant("Yo"), user("And?")])
    first = "The task is dialog. <audio>user: Hi \nassistant: <SEP>Yo<|endofchunk|><|endoftext|>\n"
    assert dialogue == first + "user: And? \nassistant: <SEP>"
