"""LAION-CLAP as a Hugging Face folder holds it: what hears audio in transformers' ``ClapModel``, fused or not.

    folder = ClapFolder(Path("models/clap-htsat-fused"))            # config.json, preprocessor_config.json, weights
    encoder = encoder_of(folder.model.encoder).build(folder.model.front_end)
    report = folder.load(encoder)                                   # which tensors were used, which not and why

The folder itself says how audio is heard and how large the encoder is: ``folder.model``.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from megatron_af.config import ClapConfig, EncoderConfig, FrontEndConfig, ModelConfig
from megatron_af.config.ranges import keep_in_range
from megatron_af.convert.encoders import EncoderFile
from megatron_af.convert.keys import KeyReport
from megatron_af.convert.shards import open_weights, tensor_files
from megatron_af.foreign import ForeignError, read_json

COMPUTED = {
    "hidden_act": "gelu",
    "projection_hidden_act": "relu",
    "fusion_type": None,
    "patch_embed_input_channels": 1,
    "flatten_patch_embeds": True,
    "enable_patch_layer_norm": True,
    "qkv_bias": True,
    "aff_block_r": 4,
    "spec_size": 256,
    "layer_norm_eps": 1e-5,
}
"""What this encoder computes of ``audio_config``'s variants."""
LARGEST = {"feature_size": 512, "fft_window_size": 16_384, "sampling_rate": 768_000, "max_length_s": 3_600}
"""What the library makes tables of at once; they would take all memory."""
SHORT_CLIPS = {"repeatpad": "repeat_whole", "repeat": "repeat", "pad": "pad"}


class ClapFolder:
    """
    Raises:
        FileNotFoundError: no ``config.json``, ``preprocessor_config.json`` or not all weights in the folder.
        ForeignError: another kind of model, broken files, or a variant that this encoder does not compute.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not self.holds(folder):
            raise ForeignError(f"{folder}: expected a Hugging Face folder with config.json of model_type 'clap'")
        if not (folder / "preprocessor_config.json").is_file():
            raise FileNotFoundError(
                f"{folder}: expected preprocessor_config.json beside the weights, it says how audio is heard"
            )
        self._audio, self._hears = _settings(folder)
        self._weights = _Weights(folder)
        try:
            self.model = self._read()
        except (TypeError, ZeroDivisionError, AttributeError, OverflowError) as error:
            both = "config.json and preprocessor_config.json"
            raise ForeignError(f"{folder}: {both} state values that make no encoder ({error})") from error

    @property
    def files(self) -> tuple[str, ...]:
        """What it was read from."""
        return ("config.json", "preprocessor_config.json", *sorted(self._weights.files))

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether a folder says that it is a CLAP."""
        file = folder / "config.json"
        config = read_json(file) if file.is_file() else None
        return isinstance(config, dict) and config.get("model_type") == "clap"

    def check(self, model: ModelConfig) -> None:
        """Raises ForeignError where ``model`` hears long clips otherwise than the folder's encoder does."""
        ours, theirs = model.front_end.long_clips, self.model.front_end.long_clips
        if ours != theirs:
            how = "fused and hears" if theirs == "views" else "not fused and hears"
            raise ForeignError(
                f"model.front_end.long_clips = {ours}: the encoder of {self.folder} is {how} long clips in {theirs}; "
                f"set it to {theirs}"
            )

    def load(self, encoder: nn.Module) -> KeyReport:
        """Fill an encoder of these sizes. Raises ValueError: it is another one, or nobody knows a tensor's use."""
        return EncoderFile(self._weights, str(self.folder)).load(encoder)

    def _read(self) -> ModelConfig:
        audio, hears = self._audio, self._hears
        fused = bool(audio.enable_fusion)
        for key, computed in COMPUTED.items():
            if getattr(audio, key) != computed:
                raise ForeignError(
                    f"{self.folder}/config.json: audio_config.{key} = {getattr(audio, key)}; only {computed} "
                    "is computed here"
                )
        if list(audio.patch_stride) != [audio.patch_size] * 2:
            raise ForeignError(
                f"{self.folder}/config.json: audio_config.patch_stride = {audio.patch_stride}, and only patches that "
                f"do not overlap are computed here, of patch_size = {audio.patch_size}"
            )
        if (hears.truncation == "fusion") != fused or hears.padding not in SHORT_CLIPS:
            raise ForeignError(
                f"{self.folder}: enable_fusion = {fused} does not go with truncation = {hears.truncation}, "
                f"padding = {hears.padding} of preprocessor_config.json; fetch both files of one model"
            )
        front_end = FrontEndConfig(
            sample_rate=hears.sampling_rate,
            window_seconds=float(hears.max_length_s),
            short_clips=SHORT_CLIPS[hears.padding],  # type: ignore[arg-type]
            long_clips="views" if fused else "windows",
            level="recorded",
            fft_size=hears.fft_window_size,
            hop_samples=hears.hop_length,
            mel_bins=hears.feature_size,
            min_hz=float(hears.frequency_min),
            max_hz=float(hears.frequency_max),
            mel_scale="htk" if fused else "slaney",
        )
        encoder = EncoderConfig(
            embed_dim=audio.patch_embeds_hidden_size,
            depths=tuple(audio.depths),
            heads=tuple(audio.num_attention_heads),
            patch_size=audio.patch_size,
            window_size=audio.window_size,
            mlp_ratio=round(audio.mlp_ratio),
            fusion=fused,
            classes=0,
            stft_weights=False,
            vector="mlp",
            vector_dim=audio.projection_dim,
        )
        found = ModelConfig(
            front_end=front_end, encoder=encoder, clap=ClapConfig(text_tower="", joint_dim=audio.projection_dim)
        )
        problems = list(keep_in_range(found)[1].values())  # else what is divided by it is no number
        if problems := problems or [*front_end.problems("front end"), *encoder.component.problems(front_end)]:
            raise ForeignError(f"{self.folder} holds an encoder that cannot be built here: {'; '.join(problems)}")
        return found


def _settings(folder: Path) -> tuple[Any, Any]:
    """``audio_config`` and the feature extractor, with transformers' own values for what the files leave out."""
    # Imported only now: it takes a second, and only such a folder needs it.
    from transformers import ClapConfig as TheirConfig
    from transformers import ClapFeatureExtractor

    config, hears = read_json(folder / "config.json"), read_json(folder / "preprocessor_config.json")
    for key, most in LARGEST.items():
        value = hears.get(key, 0) if isinstance(hears, dict) else None
        if not isinstance(value, int | float) or not 0 <= value <= most:
            raise ForeignError(f"{folder}/preprocessor_config.json: expected {key} up to {most:,}, got {value!r:.80}")
    try:
        audio: Any = TheirConfig(**config).audio_config
        with warnings.catch_warnings(action="ignore"):  # of filters that it makes, and nobody here uses
            return audio, ClapFeatureExtractor(**hears)
    except Exception as error:  # the library checks some values, by types of its own, and stumbles over others
        said = " ".join(str(error).split())[:300]
        raise ForeignError(f"{folder}: its configuration is no CLAP's ({said})") from error


class _Weights(Mapping[str, Tensor]):
    """Tensors of a folder, read when asked for."""

    def __init__(self, folder: Path) -> None:
        self._file_of = tensor_files(folder)
        self.files = set(self._file_of.values())
        self._open = {name: open_weights(folder / name) for name in self.files}

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._open[self._file_of[name]].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)
