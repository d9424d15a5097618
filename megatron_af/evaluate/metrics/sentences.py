"""Vectors of sentences by a BERT whose tokens are averaged, as sentence-transformers' plain models are used."""

from collections.abc import Sequence
from itertools import batched

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

TOGETHER = 64


@torch.no_grad()
def sentence_vectors(model: str, texts: Sequence[str]) -> Tensor:
    """Unit vectors [T, J].

    Args:
        model: folder or hub name.
    """
    tokenizer, bert = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    vectors = []
    for some in batched(texts, TOGETHER):
        read = tokenizer(list(some), padding=True, truncation=True, return_tensors="pt")
        hidden_TSD = bert(**read).last_hidden_state
        weight_TS1 = read["attention_mask"][..., None].to(hidden_TSD.dtype)
        vectors.append((hidden_TSD * weight_TS1).sum(1) / weight_TS1.sum(1))
    return torch.nn.functional.normalize(torch.cat(vectors), dim=-1)
