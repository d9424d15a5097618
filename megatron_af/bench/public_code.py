"""Decoding as the public code of Audio Flamingo 2 does it, with this project's weights: what ours is measured against.

    public = PublicCode.of(lm, added_rows, config)
    public.begin(ids_BS, tokens_LBD)              # reads the prompt
    logits_BV = public.next(ids_B1)

transformers' Qwen2 keeps keys and values of the text. Every gated block projects all audio tokens to keys and values
for every token that is written, has all scores in memory, and masks them twice (``audio_flamingo_2/src/helpers.py``,
MaskedCrossAttention; ``use_cached_media`` spares nothing of it). The audio tokens themselves are computed once, there
as here.

Shapes: S text positions, B rows, L audio tokens, D audio width, H hidden, V vocabulary.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from megatron_af.config import Config
from megatron_af.convert.huggingface.configuration_audio_flamingo import AudioFlamingoConfig
from megatron_af.convert.huggingface.modeling_audio_flamingo import AudioMemory, GatedAudioAttention, HearingQwen2Layer
from megatron_af.model import Vocabulary
from megatron_af.release.export import decoder_tensors, exported_config


class PublicBlock(GatedAudioAttention):
    def forward(self, x_BSH: Tensor, tokens_BLD: Tensor, visible_B1SL: Tensor) -> Tensor:  # type: ignore[override]
        query, key, value = (
            self._heads(projected)
            for projected in (
                self.q_proj(self.attention_norm(x_BSH)), self.k_proj(tokens_BLD), self.v_proj(tokens_BLD)
            )
        )  # fmt: skip
        scores_BNSL = (query * self.head_dim**-0.5) @ key.transpose(-1, -2)
        there_B11L = torch.ones_like(visible_B1SL[:, :, :1])
        for mask in (there_B11L, visible_B1SL):  # of padding, and of what stands later
            scores_BNSL = scores_BNSL.masked_fill(~mask, -torch.finfo(scores_BNSL.dtype).max)
        weights_BNSL = (scores_BNSL - scores_BNSL.amax(-1, keepdim=True)).softmax(-1)
        heard_BSH = self.o_proj((weights_BNSL @ value).transpose(1, 2).flatten(2))
        x_BSH = x_BSH + self.attention_gate.tanh() * heard_BSH
        ffn = self.down_proj(nn.functional.gelu(self.up_proj(self.ffn_norm(x_BSH))))
        return x_BSH + self.ffn_gate.tanh() * ffn


class PublicCode(Qwen2ForCausalLM):
    def __init__(self, config: AudioFlamingoConfig) -> None:
        super().__init__(config)
        self.model.layers = nn.ModuleList(HearingQwen2Layer(config, i) for i in range(config.num_hidden_layers))
        for layer in self.model.layers:
            if layer.audio_attention is not None:
                layer.audio_attention = PublicBlock(config)

    @classmethod
    def of(cls, lm: Any, added_rows: Tensor, config: Config, vocabulary: Vocabulary) -> Self:
        """Of a decoder that lies whole on this rank."""
        stated: Any = exported_config(config, vocabulary)
        with torch.device("meta"):
            public = cls(stated)
        tensors = dict(decoder_tensors([lm], added_rows, config))
        missing, unknown = public.load_state_dict(tensors, strict=False, assign=True)
        assert not unknown and set(missing) <= {"lm_head.weight"}
        if missing:
            public.lm_head.weight = public.model.embed_tokens.weight
        public.model.rotary_emb = Qwen2RotaryEmbedding(stated)  # its table is no weight
        return public.eval()

    def begin(self, ids_BS: Tensor, tokens_LBD: Tensor) -> Tensor:
        """Logits [B, V] behind the prompts."""
        self._cache, self._tokens_BLD = DynamicCache(config=self.config), tokens_LBD.transpose(0, 1).contiguous()
        return self.next(ids_BS)

    def next(self, ids_BS: Tensor) -> Tensor:
        """Logits [B, V] behind these tokens."""
        (batch, length), keys = ids_BS.shape, self._tokens_BLD.shape[1]
        heard: Any = dict.fromkeys(range(len(self.model.layers)), self._tokens_BLD)  # in the place of keys and values
        memory = AudioMemory(heard, torch.ones(batch, 1, length, keys, dtype=torch.bool))
        outputs = self.model(input_ids=ids_BS, past_key_values=self._cache, use_cache=True, audio_memory=memory)
        logits_BV: Tensor = self.lm_head(outputs.last_hidden_state[:, -1]).float()
        return logits_BV
