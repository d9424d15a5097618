"""The exported model computes what this project's does, in every variant that it can be exported in."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_af.config import Config
from megatron_af.convert.huggingface.modeling_audio_flamingo import AudioFlamingoForConditionalGeneration
from megatron_af.data.batch import AudioKeys, TextRows
from megatron_af.data.collate import PackedRow, Segment, collate
from megatron_af.decoder.family import family_of
from megatron_af.model import AudioFront, Vocabulary, build
from megatron_af.parallel import groups
from megatron_af.parallel.device import current_device
from megatron_af.release.export import FAMILIES, exported_config, exported_tensors
from tests import tiny
from tests.distributed import run_distributed
from tests.inference.prompts import tokenizer

pytestmark = pytest.mark.slow

CLIPS = [(0,), (1,), (0, 2), ()]
"""Of each row; clip 1 has two windows, the others one."""


def variant(**sections: dict[str, Any]) -> Config:
    config = tiny.config()
    changed = {name: dataclasses.replace(getattr(config.model, name), **values) for name, values in sections.items()}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changed))


VARIANTS = {
    "plain": variant(),
    "untied": variant(lm={"tied": False}),
    "table with rows behind the added tokens": variant(lm={"vocab": 99}),
    "a block before every second layer": variant(cross_attention={"interval": 2}),
    "only the latest audio": variant(cross_attention={"immediate": True}),
    "sinusoidal positions": variant(transform={"positions": "sinusoidal", "layers": 2}),
    "shifted windows": variant(encoder={"depths": (2, 2), "patch_size": 8, "absolute_positions": True}),
    "clapcap": variant(encoder={"vector": "residual", "vector_dim": 24}),
    "laion": variant(encoder={"vector": "mlp", "vector_dim": 24}),
    "opt": variant(lm={"family": "opt", "kv_heads": 4, "norm_eps": 1e-5}, transform={"positions": "sinusoidal"}),
    "opt, untied": variant(lm={"family": "opt", "kv_heads": 4, "norm_eps": 1e-5, "tied": False, "vocab": 99}),
    "rows heard as a whole": variant(
        lm={"family": "opt", "kv_heads": 4, "norm_eps": 1e-5},
        encoder={"vector": "residual", "vector_dim": 24},
        transform={"positions": "sinusoidal", "sees": "row", "row_windows": 3},
    ),
    "released parts": variant(encoder={"fusion": True, "classes": 5, "stft_weights": True}),
}


def rows_of(config: Config) -> TextRows:
    rows = []
    for number, clips in enumerate(CLIPS):
        words = list(range(3 + number, 6 + 3 * number))
        ids = [tiny.AUDIO_ID, 5, *words, 93] if clips else [*words, 93]
        if len(clips) == 2:
            ids += [7, tiny.AUDIO_ID, 8, 93]
        rows.append(PackedRow(segments=(Segment(ids=ids, num_audios=len(clips)),), clips=clips))
    return collate(rows, tokenizer(), 24, immediate=config.model.cross_attention.immediate)


def both(rank: int, world_size: int, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of this project's model and of the exported one, and how much the first ones depend on the audio."""
    groups.initialize(config.parallel, 0)
    vocabulary = Vocabulary(first_added_id=90, num_added=4)
    model = build(config, vocabulary, current_device())
    tiny.fill(model)
    front, (decoder,) = model.front, model.chunks
    assert isinstance(front, AudioFront)
    front.eval()
    exported = FAMILIES[config.model.lm.family][1](exported_config(config, vocabulary))
    weights = dict(exported_tensors(model, config))
    if config.model.lm.tied:
        table = family_of(config.model.lm).outside_layers["embedding.word_embeddings.weight"]
        weights["lm_head.weight"] = weights[table]
    exported.load_state_dict(weights)  # strictly: each exactly once
    exported.eval()
    mels = [tiny.mel_of(clip) for clip in range(3)]
    rows = rows_of(config)
    with torch.no_grad():
        alone = front.sees == "clip"
        tokens = [front(front.encode(mel), [len(mel)]) if alone else front.encode(mel).flatten(0, 1) for mel in mels]
        heard = [torch.cat([tokens[c] for c in clips]) if clips else tokens[0][:0] for clips in CLIPS]
        owner = [
            torch.arange(len(clips)).repeat_interleave(torch.tensor([len(tokens[c]) for c in clips], dtype=torch.long))
            for clips in CLIPS
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        keys = AudioKeys(tokens_LBD=pad(heard), audio_of_BL=pad(owner, batch_first=True, padding_value=-1).int())
        if front.sees == "row":
            keys = front.row_keys(front.encode(torch.cat(mels)), [len(mel) for mel in mels], CLIPS)
        ours = decoder.logits(rows, keys, front.added_rows)
        silent = AudioKeys(tokens_LBD=keys.tokens_LBD * 0, audio_of_BL=keys.audio_of_BL)
        deaf = decoder.logits(rows, silent, front.added_rows)

        features = torch.zeros(len(CLIPS), 2, *mels[0].shape[1:])
        window_audio = torch.full((len(CLIPS), 2), -1)
        for row, clips in enumerate(CLIPS):
            windows = torch.cat([mels[c] for c in clips]) if clips else mels[0][:0]
            features[row, : len(windows)] = windows
            window_audio[row, : len(windows)] = torch.tensor([i for i, c in enumerate(clips) for _ in mels[c]])
        mask_BS = (rows.segment_BS >= 0).long()
        # Padded at the left, as `generate` wants it.
        lengths = mask_BS.sum(1).tolist()
        order = [torch.roll(torch.arange(24), 24 - length) for length in lengths]
        ids_BS, left_BS = (torch.stack([x[i] for x, i in zip(t, order, strict=True)]) for t in (rows.ids_BS, mask_BS))
        audio = {"input_features": features, "window_audio": window_audio}
        theirs = exported(input_ids=ids_BS, attention_mask=left_BS, **audio).logits
        first = exported(input_ids=ids_BS[:, :-1], attention_mask=left_BS[:, :-1], use_cache=True, **audio)
        cached = exported(
            input_ids=ids_BS[:, -1:],
            attention_mask=left_BS,
            past_key_values=first.past_key_values,
            audio_memory=first.audio_memory,
        ).logits
        torch.testing.assert_close(cached[:, 0], theirs[:, -1], atol=2e-5, rtol=1e-5)
    real_BS = mask_BS.bool()
    return ours[real_BS], theirs[left_BS.bool()], (ours - deaf)[real_BS].abs().amax(-1)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_logits_are_this_projects(config: Config) -> None:
    ours, theirs, heard = run_distributed(both, 1, config)[0]
    assert ours.shape[1] == max(config.model.lm.vocab, 94)
    torch.testing.assert_close(theirs, ours, atol=2e-5, rtol=1e-5)
    assert (heard > 1e-3).float().mean() > 0.5, "and they depend on what is heard"


def test_texts_without_their_audio_memory_are_refused() -> None:
    vocabulary = Vocabulary(first_added_id=90, num_added=4)
    model = AudioFlamingoForConditionalGeneration(exported_config(tiny.config(), vocabulary)).eval()
    first = model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=True)
    with pytest.raises(ValueError, match="expected audio_memory of the last output"):
        model(input_ids=torch.tensor([[6]]), past_key_values=first.past_key_values)
    with pytest.raises(ValueError, match="expected input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 64))
    whole = model(input_ids=torch.tensor([[3, 4, 5, 6]])).logits[:, -1]
    cached = model(
        input_ids=torch.tensor([[6]]), past_key_values=first.past_key_values, audio_memory=first.audio_memory
    ).logits[:, -1]
    torch.testing.assert_close(cached, whole)
    loss = model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[-100, 4, 5]])).loss
    loss.backward()
    assert model.audio_tower.transform.layers[0].query.weight.grad is None, "nothing was heard"
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
