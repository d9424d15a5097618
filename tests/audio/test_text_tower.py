"""Text towers: pooling over real tokens only, and Hugging Face towers from a folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForTextEncoding,
)

from megatron_af.audio.clap import ClapModel, JointSpace
from megatron_af.audio.text_tower import TextTower
from megatron_af.config import ClapConfig, EncoderConfig, ModelConfig
from tests.audio.tower import WORDS, save_tower

ENCODER = EncoderConfig(
    embed_dim=8, depths=(1, 1), heads=(1, 2), patch_size=16, fusion=False, classes=0, stft_weights=False, drop_path=0
)


FRESH = ClapConfig(text_tower="", text_hidden=16, text_layers=1, text_heads=2, text_max_tokens=12, joint_dim=8)


class WordTokenizer:
    pad_id = 0

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(word) for word in text.split()]

    def __len__(self) -> int:
        return len(WORDS)


def build(clap: ClapConfig = FRESH) -> ClapModel:
    torch.manual_seed(0)
    return ClapModel(ModelConfig(encoder=ENCODER, clap=clap), WordTokenizer())


def test_padding_does_not_change_a_text():
    clap = build().eval().clap
    short, long = "a dog barks", "a dog barks then rain falls then rain falls"
    together = clap.join_text(*clap.text.tokenize([short, long]))
    for text, vector in zip((short, long), together, strict=True):
        torch.testing.assert_close(clap.join_text(*clap.text.tokenize([text]))[0], vector, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(2))


def test_texts_are_cut_and_empty_ones_refused():
    clap = build().clap
    ids, real = clap.text.tokenize(["a " * 50, "rain"])
    assert ids.shape == real.shape == (2, 12)
    assert real.sum(1).tolist() == [12, 1]
    with pytest.raises(ValueError, match="text 1 of 2 has no token"):
        clap.text.tokenize(["a", " "])
    assert clap.text.tokenize([])[0].shape == (0, 1)


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_any_hugging_face_encoder_is_a_tower(tmp_path, kind):
    save_tower(tmp_path, kind)
    config = ClapConfig(text_tower=str(tmp_path), joint_dim=8)
    space = JointSpace(config, ENCODER, None).eval()
    ids, real = space.text.tokenize(["a dog barks", "rain"])
    assert ids.tolist() == [[3, 4, 5], [7, 0, 0]]
    # by hand: mean of the tower's outputs over the real tokens, then the projection
    tower = AutoModelForTextEncoding.from_pretrained(tmp_path).eval()
    hidden = tower(input_ids=ids[1:, :1]).last_hidden_state[0].mean(0)
    expected = torch.nn.functional.normalize(space.text_projection(hidden), dim=-1)
    torch.testing.assert_close(space.join_text(ids, real)[1], expected, atol=1e-5, rtol=1e-4)
    assert not [name for name, _ in space.named_parameters() if "pooler" in name]


def test_missing_tower_names_its_key(tmp_path):
    with pytest.raises(ValueError, match="text_tower"):
        JointSpace(ClapConfig(text_tower=str(tmp_path)), ENCODER, None)
    with pytest.raises(ValueError, match="tokenizer"):
        JointSpace(FRESH, ENCODER, None)


def changed_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def larger(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"word{i}": 9 + i for i in range(5)}
    (folder / "tokenizer.json").write_text(json.dumps(content))


UNPADDED = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
TABLE = "embeddings.word_embeddings.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: (f / "model.safetensors").write_bytes(b"cut"), "holds no text encoder that transformers can"),
    "web page": (lambda f: (f / "tokenizer.json").write_text("<html>"), "holds no text encoder that transformers can"),
    "missing": (lambda f: changed_weights(f, lambda w: w.pop(TABLE)), f"does not hold {TABLE}"),
    "shape": (lambda f: changed_weights(f, lambda w: w.update({TABLE: torch.ones(3, 16)})), f"another shape.*{TABLE}"),
    "nan": (lambda f: changed_weights(f, lambda w: w[TABLE].fill_(torch.nan)), f"{TABLE} holds NaN or infinity"),
    "no tokenizer": (lambda f: [file.unlink() for file in f.glob("tokenizer*")], "holds no tokenizer"),
    "larger": (larger, "with 14 tokens in its tokenizer, and 9 rows in its table"),
    "no padding": (lambda f: (f / "tokenizer_config.json").write_text(json.dumps(UNPADDED)), "has no pad_token"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_tower_of_files_that_make_none_is_refused(tmp_path, what):
    """What the library makes anew, at random, or leaves out would be trained on without a word."""
    save_tower(tmp_path, "bert")
    change, told = BROKEN[what]
    change(tmp_path)
    with pytest.raises(ValueError, match=rf"model\.clap\.text_tower: '{tmp_path}' is a folder.*{told}"):
        TextTower(ClapConfig(text_tower=str(tmp_path)))
