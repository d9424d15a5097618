"""Audio Flamingo: Qwen2 (2) or OPT (1) that hears, through gated cross-attention to audio tokens of its recordings.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(text="<audio>what is heard?<SEP>", audio="dog.wav")
    answer = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    processor.batch_decode(answer, skip_special_tokens=True)

In front of a layer of the language model stands a block that adds what it hears, scaled by gates that were learnt from
0 on, so that a fresh one changes nothing (Alayrac et al. 2022; Ghosh et al. 2025):

    x += tanh(attention_gate) * attention(norm(x), audio)
    x += tanh(ffn_gate) * ffn(norm(x))

A text position hears the recordings whose ``<audio>`` mark stands at or before it. Keys and values of the audio are
computed once, with the prompt, and kept for all tokens that are generated.

Shapes: B rows, S text positions, W windows, F mel frames, M mel bins, L audio tokens, D audio width, H hidden, N heads,
K head dim.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, OPTForCausalLM, PreTrainedModel, Qwen2ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.opt.modeling_opt import OPTDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from .audio_tower_audio_flamingo import AudioTower
from .configuration_audio_flamingo import AudioFlamingo1Config, AudioFlamingoConfig, AudioSizes

IGNORED = -1
"""In ``window_audio``: the row has no such window."""


@dataclass(frozen=True)
class AudioMemory:
    """What the text of a batch can hear."""

    keys_values: dict[int, tuple[Tensor, Tensor]]
    """Of each layer with a gated block: keys and values [B, N, L + 1, K], the last one a null key of value 0."""
    visible_B1SL: Tensor
    """Which keys each position hears. One that hears no audio sees the null key alone, and so adds exactly 0."""

    def afterwards(self) -> "AudioMemory":
        """For the tokens behind these ones, which hear what the last of them heard."""
        return AudioMemory(self.keys_values, self.visible_B1SL[:, :, -1:])


@dataclass
class AudioFlamingoOutput(CausalLMOutputWithPast):
    """A language model's output, and what the next tokens hear (`AudioMemory.afterwards`)."""

    audio_memory: AudioMemory | None = None


class GatedAudioAttention(nn.Module):
    """The block in front of a layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        sizes, hidden = config.audio_attention, config.hidden_size
        self.head_dim = sizes["head_dim"]
        inner = sizes["heads"] * self.head_dim
        self.attention_norm, self.ffn_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.q_proj = nn.Linear(hidden, inner, bias=False)
        self.k_proj = nn.Linear(config.audio_width, inner, bias=False)
        self.v_proj = nn.Linear(config.audio_width, inner, bias=False)
        self.o_proj = nn.Linear(inner, hidden, bias=False)
        self.up_proj = nn.Linear(hidden, sizes["ffn_multiplier"] * hidden, bias=False)
        self.down_proj = nn.Linear(sizes["ffn_multiplier"] * hidden, hidden, bias=False)
        self.attention_gate, self.ffn_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def keys_values(self, tokens_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, N, L + 1, K] of audio tokens, the null key behind them."""
        key, value = (F.pad(projection(tokens_BLD), (0, 0, 0, 1)) for projection in (self.k_proj, self.v_proj))
        return self._heads(key), self._heads(value)

    def forward(self, x_BSH: Tensor, key_value: tuple[Tensor, Tensor], visible_B1SL: Tensor) -> Tensor:
        query = self._heads(self.q_proj(self.attention_norm(x_BSH)))
        heard = F.scaled_dot_product_attention(query, *key_value, attn_mask=visible_B1SL)
        x_BSH = x_BSH + self.attention_gate.tanh() * self.o_proj(heard.transpose(1, 2).flatten(2))
        return x_BSH + self.ffn_gate.tanh() * self.down_proj(F.gelu(self.up_proj(self.ffn_norm(x_BSH))))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


class Hears(nn.Module):
    """In front of a language model's layer: a gated block before every ``interval``-th one."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.layer_idx = layer_idx
        has_block = (layer_idx + 1) % config.audio_attention["interval"] == 0
        self.audio_attention = GatedAudioAttention(config) if has_block else None

    def forward(self, hidden_states: Tensor, *args: Any, audio_memory: AudioMemory, **kwargs: Any) -> Tensor:
        if self.audio_attention is not None:
            key_value = audio_memory.keys_values[self.layer_idx]
            hidden_states = self.audio_attention(hidden_states, key_value, audio_memory.visible_B1SL)
        output: Tensor = super().forward(hidden_states, *args, **kwargs)
        return output


class HearingQwen2Layer(Hears, Qwen2DecoderLayer):
    pass


class HearingOPTLayer(Hears, OPTDecoderLayer):
    pass


class HearingModel(PreTrainedModel, GenerationMixin):
    """In front of a language model, whose layers it replaces by ``layer_class``."""

    layer_class: type
    input_modalities = ("audio", "text")
    _keep_in_fp32_modules_strict = ["bn0"]  # noqa: RUF012 (transformers' own form)

    def __init__(self, config: AudioSizes) -> None:
        super().__init__(config)
        layers = self.hearing_layers
        for i in range(len(layers)):
            layers[i] = self.layer_class(config, i)
        self.audio_tower = AudioTower(config)
        self.post_init()

    @property
    def hearing_layers(self) -> nn.ModuleList:
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        input_features: Tensor | None = None,
        window_audio: Tensor | None = None,
        audio_memory: AudioMemory | None = None,
        **kwargs: Any,
    ) -> AudioFlamingoOutput:
        """
        Args:
            input_ids: [B, S]; ``<audio>`` marks stand for the row's recordings, in their order.
            labels: [B, S], -100 where nothing is to be said; not yet shifted.
            input_features: dB mel windows [B, W, F, M]. None: nothing is heard.
            window_audio: which of its row's recordings a window belongs to [B, W]; -1 where the row has no more.
            audio_memory: what the last output says that these tokens hear; required beside ``past_key_values``.
        """
        if audio_memory is None:
            if input_ids is None:
                raise ValueError("expected input_ids, whose <audio> marks say what is heard; got none")
            if past_key_values is not None and past_key_values.get_seq_length():
                raise ValueError("expected audio_memory of the last output beside its past_key_values, got none")
            audio_memory = self.listen(input_ids, input_features, window_audio)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            audio_memory=audio_memory,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BSV = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BSV, labels=labels, vocab_size=self.config.vocab_size)
        return AudioFlamingoOutput(
            loss=loss,
            logits=logits_BSV,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_memory=audio_memory.afterwards(),
        )

    def listen(
        self,
        input_ids: Tensor,
        input_features: Tensor | None = None,
        window_audio: Tensor | None = None,
    ) -> AudioMemory:
        """What the positions of whole texts hear; arguments as in :meth:`forward`."""
        tokens_BLD, audio_of_BL = self._audio_tokens(len(input_ids), input_features, window_audio)
        blocks = {i: layer.audio_attention for i, layer in enumerate(self.hearing_layers)}
        keys_values = {
            i: block.keys_values(tokens_BLD) for i, block in blocks.items() if isinstance(block, GatedAudioAttention)
        }
        marks_BS = input_ids == self.config.audio_token_id
        audios_B1 = audio_of_BL.amax(1, keepdim=True) + 1 if audio_of_BL.shape[1] else audio_of_BL.new_zeros(1, 1)
        last_BS = torch.minimum((marks_BS.cumsum(1) - 1).clamp(min=0), audios_B1 - 1)
        first_BS = last_BS if self.config.audio_attention["immediate"] else torch.zeros_like(last_BS)
        audio_of_B1L = audio_of_BL[:, None, :]
        visible_BSL = (audio_of_B1L >= first_BS.clamp(min=0)[:, :, None]) & (audio_of_B1L <= last_BS[:, :, None])
        null_BS1 = ~visible_BSL.any(-1, keepdim=True)
        return AudioMemory(keys_values, torch.cat([visible_BSL, null_BS1], -1)[:, None])

    def _audio_tokens(
        self, rows: int, input_features: Tensor | None, window_audio: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Audio tokens of each row's recordings [B, L, D], and which one each token is of [B, L], -1 at padding."""
        if input_features is None or window_audio is None or not (window_audio != IGNORED).any():
            empty_BLD = torch.zeros(rows, 0, self.config.audio_width, dtype=self.dtype, device=self.device)
            return empty_BLD, torch.zeros(rows, 0, dtype=torch.long, device=self.device)
        there_BW = window_audio != IGNORED
        counts = [torch.bincount(row[row != IGNORED]).tolist() for row in window_audio]
        recordings = iter(self.audio_tower(input_features[there_BW], counts))
        heard = [[next(recordings) for _ in row] for row in counts]
        tokens = [torch.cat(row) if row else self._no_tokens() for row in heard]
        lengths = [torch.tensor([len(tokens_LD) for tokens_LD in row], dtype=torch.long) for row in heard]
        audio_of = [torch.arange(len(row)).repeat_interleave(row) for row in lengths]
        padded_BL = nn.utils.rnn.pad_sequence(audio_of, batch_first=True, padding_value=IGNORED)
        return nn.utils.rnn.pad_sequence(tokens, batch_first=True), padded_BL.to(self.device)

    def _no_tokens(self) -> Tensor:
        return torch.zeros(0, self.config.audio_width, dtype=self.dtype, device=self.device)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        if inputs.get("audio_memory") is not None:
            inputs["input_features"] = inputs["window_audio"] = None
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs: AudioFlamingoOutput, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        if updated.get("use_cache", True):  # without a cache every token reads the whole text anew
            updated["audio_memory"] = outputs.audio_memory
        return updated


class AudioFlamingoForConditionalGeneration(HearingModel, Qwen2ForCausalLM):
    config_class = AudioFlamingoConfig
    layer_class = HearingQwen2Layer
    _no_split_modules = ["HearingQwen2Layer", "SwinBlock"]  # noqa: RUF012

    @property
    def hearing_layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.model.layers
        return layers


class AudioFlamingo1ForConditionalGeneration(HearingModel, OPTForCausalLM):
    config_class = AudioFlamingo1Config
    layer_class = HearingOPTLayer
    _no_split_modules = ["HearingOPTLayer", "SwinBlock"]  # noqa: RUF012

    @property
    def hearing_layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.model.decoder.layers
        return layers
