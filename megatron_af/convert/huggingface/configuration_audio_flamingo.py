"""Sizes of an Audio Flamingo model: those of its language model, and of everything that lets it hear.

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    config.hidden_size, config.audio_encoder["embed_dim"], config.audio_attention["interval"]
"""

from typing import Any

from transformers import OPTConfig, Qwen2Config


class AudioSizes:
    """In front of a language model's configuration.

    Args:
        audio_encoder: HTS-AT: ``embed_dim``, ``depths`` and ``heads`` by stage, ``patch_size``, ``window_size`` (side
            of an attention window, in patches), ``mlp_ratio``, ``absolute_positions``, ``mel_bins``, and ``vector``
            with ``vector_dim``: one projected vector a window (``mlp``, ``residual``) instead of its tokens.
        audio_transform: layers over all tokens of a recording: ``layers``, ``heads``, ``ffn``, ``positions`` (``rope``
            or ``sinusoidal``), ``rope_base``; ``sees``: ``clip``, or ``row``: all recordings of a text at once, each
            with silence up to ``row_windows`` windows, as the released Audio Flamingo 1 does.
        audio_attention: gated blocks in front of every ``interval``-th layer: ``heads``, ``head_dim``,
            ``ffn_multiplier``; ``immediate``: text hears only the latest recording before it, not all so far.
        audio_token_id: of the mark in the text that stands for a recording.
    """

    def __init__(
        self,
        audio_encoder: dict[str, Any] | None = None,
        audio_transform: dict[str, Any] | None = None,
        audio_attention: dict[str, Any] | None = None,
        audio_token_id: int = 151_665,
        **language_model: Any,
    ) -> None:
        super().__init__(**language_model)
        self.audio_encoder: dict[str, Any] = {
            "embed_dim": 256,
            "depths": [2, 2, 12, 2],
            "heads": [4, 8, 16, 32],
            "patch_size": 4,
            "window_size": 8,
            "mlp_ratio": 4,
            "absolute_positions": False,
            "mel_bins": 64,
            "vector": "",
            "vector_dim": 512,
        } | (audio_encoder or {})
        self.audio_transform: dict[str, Any] = {
            "layers": 3,
            "heads": 8,
            "ffn": 2048,
            "positions": "rope",
            "rope_base": 4096.0,
            "sees": "clip",
            "row_windows": 16,
        } | (audio_transform or {})
        self.audio_attention = {
            "interval": 1,
            "heads": 8,
            "head_dim": 64,
            "ffn_multiplier": 4,
            "immediate": False,
        } | (audio_attention or {})
        self.audio_token_id = audio_token_id

    @property
    def audio_width(self) -> int:
        """Of an audio token."""
        encoder = self.audio_encoder
        width: int = encoder["embed_dim"] * 2 ** (len(encoder["depths"]) - 1)
        return encoder["vector_dim"] if encoder["vector"] else width


class AudioFlamingoConfig(AudioSizes, Qwen2Config):
    model_type = "audio_flamingo"

    def __init__(self, **sizes: Any) -> None:  # transformers writes one of its own where there is none
        super().__init__(**sizes)


class AudioFlamingo1Config(AudioSizes, OPTConfig):
    model_type = "audio_flamingo_1"

    def __init__(self, **sizes: Any) -> None:  # transformers writes one of its own where there is none
        super().__init__(**sizes)
