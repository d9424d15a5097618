"""A training step as the public code of Audio Flamingo 2 takes it, in plain PyTorch: what ``bench/step.py`` is held to.

    public = PublicWay(config, model.named_parameters(), first_added_id)        # takes a copy of the weights
    public.loss(features, ids, learnt_from).backward()
    public.step()

Its way (NVIDIA/audio-flamingo, branch audio_flamingo_2, src/helpers.py, flamingo.py, flamingo_lm.py): every clip is
padded to the most windows of the batch, and the padding goes through the transformation layers; their scores and those
of cross-attention are materialised; the mask of cross-attention is written by a Python loop over rows, in every layer;
every text is padded to the longest; logits are float32 over the whole vocabulary at every position. The language model
is as transformers computes Qwen2, with torch's fused attention under a mask. AdamW is torch's. What is computed is what
Megatron-AF computes, and that is checked before anything is timed.

Shapes: B samples, S text positions, L audio tokens of the longest clip, H hidden, D audio width, N heads, K head dim,
V vocabulary.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_af.config import Config
from megatron_af.data.batch import IGNORED

HIDDEN_SCORE = -1e9


class PublicWay:
    """One process, one sample a row, each with one clip."""

    def __init__(self, config: Config, weights: Iterable[tuple[str, nn.Parameter]], first_added_id: int) -> None:
        self._model, self._first_added = config.model, first_added_id
        self.weights = {
            name: nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad) for name, weight in weights
        }
        self.trained = [weight for weight in self.weights.values() if weight.requires_grad]
        settings = config.curriculum[config.stage].optimizer
        self._clip_norm = settings.clip_norm
        self._optimizer = torch.optim.AdamW(
            self.trained,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )

    @torch.no_grad()
    def take(self, weights: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Go on from these weights."""
        for name, weight in weights:
            self.weights[name].copy_(weight)

    def state(self) -> dict[str, object]:
        """What its checkpoints hold."""
        return {"model_state_dict": self.weights, "optimizer_state_dict": self._optimizer.state_dict()}

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.trained, self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def loss(self, features: Sequence[Tensor], ids: Sequence[Tensor], learnt_from: Sequence[int]) -> Tensor:
        """
        Args:
            features: of each sample's clip, [windows, tokens of one, D].
            learnt_from: of each sample, the first position whose next token is learnt.

        Returns:
            The mean over the tokens that are learnt.
        """
        like = self.weights["added_rows"]
        features, ids = [clip.to(like) for clip in features], [sample.to(like.device) for sample in ids]
        with torch.device(like.device):
            return self._loss(features, ids, learnt_from)

    def _loss(self, features: Sequence[Tensor], ids: Sequence[Tensor], learnt_from: Sequence[int]) -> Tensor:
        tokens_BLD, valid_BL = self._audio(features)
        length = max(map(len, ids))
        ids_BS = torch.stack([F.pad(sample, (0, length - len(sample))) for sample in ids])
        labels_BS = torch.full_like(ids_BS, IGNORED)
        for row, (sample, begin) in enumerate(zip(ids, learnt_from, strict=True)):
            labels_BS[row, begin : len(sample) - 1] = sample[begin + 1 :]
        logits_BSV = self._language_model(ids_BS, [len(sample) for sample in ids], tokens_BLD, valid_BL)
        logits_BSV = logits_BSV.to(torch.promote_types(logits_BSV.dtype, torch.float32))
        return F.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), ignore_index=IGNORED)

    def _audio(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Transformation layers over all clips padded to the longest; and where their own tokens are."""
        most = max(len(clip) for clip in features)
        x_BLD = torch.stack([F.pad(clip, (0, 0, 0, 0, 0, most - len(clip))) for clip in features]).flatten(1, 2)
        batch, length, dim = x_BLD.shape
        valid_BL = torch.zeros(batch, length, dtype=torch.bool)
        for row, clip in enumerate(features):
            valid_BL[row, : clip.shape[0] * clip.shape[1]] = True
        config, w = self._model.transform, self.weights
        heads, head_dim = config.heads, dim // config.heads
        cos, sin = _turns(length, min(head_dim, max(head_dim // 2, 32)), config.rope_base)
        x_BLD = F.layer_norm(x_BLD * math.sqrt(dim), (dim,), *_pair(w, "transform.layer_norm"), eps=1e-6)
        for layer in range(config.layers):
            at = f"transform.layers.{layer}"
            q, k, v = (
                _heads(F.linear(x_BLD, w[f"{at}.{name}.weight"]), heads)
                for name in ("query", "key", "value")
            )
            scores_BNLL = _turned(q, cos, sin) @ _turned(k, cos, sin).transpose(-1, -2) / math.sqrt(head_dim)
            scores_BNLL = scores_BNLL.masked_fill(~valid_BL[:, None, None], HIDDEN_SCORE).softmax(-1)
            attended_BLD = (scores_BNLL @ v).transpose(1, 2).flatten(2)
            y_BLD = x_BLD + F.linear(attended_BLD, w[f"{at}.output.weight"])
            x_BLD = F.layer_norm(y_BLD, (dim,), *_pair(w, f"{at}.attention_norm"), eps=1e-6)
            inner = F.relu(F.linear(x_BLD, *_pair(w, f"{at}.ffn_in")))
            y_BLD = x_BLD + F.linear(inner, *_pair(w, f"{at}.ffn_out"))
            x_BLD = F.layer_norm(y_BLD, (dim,), *_pair(w, f"{at}.ffn_norm"), eps=1e-6)
        return x_BLD, valid_BL

    def _language_model(self, ids_BS: Tensor, lengths: Sequence[int], audio_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        lm, w = self._model.lm, self.weights
        rows_NH, first = w["added_rows"], self._first_added
        own_VH = w["lm.embedding.word_embeddings.weight"]
        table_VH = torch.cat([own_VH[:first], rows_NH, own_VH[first + len(rows_NH) : lm.vocab]])
        x_BSH = F.embedding(ids_BS, table_VH)
        length = ids_BS.shape[1]
        position_S = torch.arange(length)
        real_BS = position_S < torch.tensor(lengths)[:, None]
        seen_BSS = (position_S <= position_S[:, None]) & (real_BS[:, None] | (position_S == position_S[:, None]))
        cos, sin = _turns(length, lm.hidden // lm.heads, lm.rope_base)
        for layer in range(lm.layers):
            at = f"lm.decoder.layers.{layer}"
            if (layer + 1) % self._model.cross_attention.interval == 0:
                x_BSH = self._gated_block(f"{at}.xattn", x_BSH, audio_BLD, valid_BL)
            x_BSH = self._layer(at, x_BSH, seen_BSS, cos, sin)
        x_BSH = F.rms_norm(x_BSH, (lm.hidden,), w["lm.decoder.final_layernorm.weight"], lm.norm_eps)
        return F.linear(x_BSH, table_VH if lm.tied else w["lm.output_layer.weight"][: lm.vocab])

    def _gated_block(self, at: str, x_BSH: Tensor, audio_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        config, w = self._model.cross_attention, self.weights
        hidden = x_BSH.shape[-1]
        normed = F.layer_norm(x_BSH, (hidden,), *_pair(w, f"{at}.attention_norm"), eps=1e-5)
        q_BNSK = _heads(F.linear(normed, w[f"{at}.attention.linear_q.weight"]), config.heads)
        kv_BNLK = _heads(F.linear(audio_BLD, w[f"{at}.attention.linear_kv.weight"]), config.heads)
        k_BNLK, v_BNLK = kv_BNLK.chunk(2, dim=-1)
        mask_BSL = torch.ones(x_BSH.shape[0], x_BSH.shape[1], audio_BLD.shape[1], dtype=torch.bool)
        for row, own_L in enumerate(valid_BL):  # in every layer anew
            mask_BSL[row] = own_L
        scores = q_BNSK @ k_BNLK.transpose(-1, -2) / math.sqrt(config.head_dim)
        scores = scores.masked_fill(~mask_BSL[:, None], HIDDEN_SCORE).softmax(-1)
        heard = F.linear((scores @ v_BNLK).transpose(1, 2).flatten(2), w[f"{at}.attention.linear_proj.weight"])
        x_BSH = x_BSH + w[f"{at}.gate_attn"].tanh() * heard
        normed = F.layer_norm(x_BSH, (hidden,), *_pair(w, f"{at}.ffn_norm"), eps=1e-5)
        inner = F.gelu(F.linear(normed, w[f"{at}.ffn.linear_fc1.weight"]))
        return x_BSH + w[f"{at}.gate_ffn"].tanh() * F.linear(inner, w[f"{at}.ffn.linear_fc2.weight"])

    def _layer(self, at: str, x_BSH: Tensor, seen_BSS: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        lm, w = self._model.lm, self.weights
        groups, head_dim = lm.heads // lm.kv_heads, lm.hidden // lm.heads
        normed = F.rms_norm(x_BSH, (lm.hidden,), w[f"{at}.input_layernorm.weight"], lm.norm_eps)
        # Of each group of heads its queries, its key and its value, as megatron-core stores them.
        qkv = F.linear(normed, *_pair(w, f"{at}.self_attention.linear_qkv"))
        qkv = qkv.view(*qkv.shape[:2], lm.kv_heads, groups + 2, head_dim)
        q, k, v = torch.split(qkv, [groups, 1, 1], dim=3)
        q = _turned(q.flatten(2, 3).transpose(1, 2), cos, sin)
        k, v = (x.squeeze(3).transpose(1, 2).repeat_interleave(groups, dim=1) for x in (k, v))
        attended = F.scaled_dot_product_attention(q, _turned(k, cos, sin), v, attn_mask=seen_BSS[:, None])
        x_BSH = x_BSH + F.linear(attended.transpose(1, 2).flatten(2), w[f"{at}.self_attention.linear_proj.weight"])
        normed = F.rms_norm(x_BSH, (lm.hidden,), w[f"{at}.pre_mlp_layernorm.weight"], lm.norm_eps)
        gate, up = F.linear(normed, w[f"{at}.mlp.linear_fc1.weight"]).chunk(2, dim=-1)
        return x_BSH + F.linear(F.silu(gate) * up, w[f"{at}.mlp.linear_fc2.weight"])


def _heads(x_BTH: Tensor, heads: int) -> Tensor:
    """[B, N, T, H / N]"""
    return x_BTH.view(*x_BTH.shape[:2], heads, -1).transpose(1, 2)


def _pair(weights: dict[str, nn.Parameter], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _turns(length: int, dims: int, base: float) -> tuple[Tensor, Tensor]:
    frequency = base ** (-torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    return angle.cos(), angle.sin()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the first dimensions of each head: pairs (i, i + half)."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1).to(x.dtype)
