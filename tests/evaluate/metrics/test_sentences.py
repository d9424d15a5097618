"""Sentences' vectors are means over tokens that are there, whatever stands beside them in a batch."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from megatron_af.evaluate.metrics.sentences import sentence_vectors


@pytest.fixture
def bert(tmp_path: Path) -> str:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "rain", "a"]))
    BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path)
    return str(tmp_path)


def test_vectors_are_unit_means_that_padding_does_not_change(bert: str) -> None:
    alone = sentence_vectors(bert, ["a dog"])
    together = sentence_vectors(bert, ["a dog", "a dog a rain a dog a rain", "rain"])
    torch.testing.assert_close(alone[0], together[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(bert)(["a dog"], return_tensors="pt")
    mean = BertModel.from_pretrained(bert).eval()(**read).last_hidden_state.mean(1)
    torch.testing.assert_close(alone, torch.nn.functional.normalize(mean, dim=-1), rtol=0, atol=1e-5)
