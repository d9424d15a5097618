"""Towers of a CLAP, for anything that compares audio with text or with audio.

    embedder = ClapEmbedder(config)               # newest checkpoint of config.stage; a process group exists
    audio_NJ = embedder.audio(rows)               # one unit vector per row, its first clip
    text_TJ = embedder.texts(["a dog barks"])     # similarity is their scalar product

A published one hears audio alone:

    embedder = PublishedEmbedder(config, ClapFolder(Path("models/clap-htsat-fused")))

Work is shared among the ranks and every rank gets everything. N rows, T texts, J joint dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import batched
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_af.audio.clap import ClapModel, clip_means
from megatron_af.audio.encoder import encoder_of
from megatron_af.audio.recompute import WINDOWS_AT_ONCE
from megatron_af.config import Config, ConfigError, ParallelConfig
from megatron_af.convert.clap_folder import ClapFolder
from megatron_af.data.clips import ClipLoader
from megatron_af.data.rows import Row
from megatron_af.data.stream import hear
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import resolve_entry
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.checkpoint_reading import load_parts
from megatron_af.train.objectives.contrastive_learner import build_clap

BATCH_ROWS, BATCH_TEXTS = 16, 64


class AudioEmbedder:
    """Embeds audio.

    Args:
        embed: unit vectors audio_CJ of clips, from their mel and the windows of each.
        joint_dim: length of a vector.
    """

    def __init__(
        self, embed: Callable[[Tensor, Sequence[int]], Tensor], joint_dim: int, loader: ClipLoader
    ) -> None:
        self._embed, self._joint_dim, self._loader = embed, joint_dim, loader

    @torch.no_grad()
    def audio(self, rows: Sequence[Row], *, root: Path | None = None) -> Tensor:
        """audio_NJ on the host, float32.

        Args:
            root: where the rows' clips lie; default: below ``data.root``.

        Raises:
            AudioError: a clip cannot be decoded.
        """
        loader = self._loader if root is None else self._loader.below(root)

        def embed(mine: Sequence[Row]) -> list[Tensor]:
            found: list[Tensor] = []
            for some in batched(mine, BATCH_ROWS):
                audio, heard = hear(loader, [replace(row, clips=row.clips[:1]) for row in some])
                assert audio.mel_WFM is not None, "every row to embed has a clip"
                audio_CJ = self._embed(audio.mel_WFM, audio.clip_windows).cpu()
                found += audio_CJ[[clip for (clip,) in heard]]
            return found

        return self._shared(rows, embed)

    def _shared[Item](self, items: Sequence[Item], embed: Callable[[Sequence[Item]], list[Tensor]]) -> Tensor:
        rank, world = dist.get_rank(), dist.get_world_size()
        own = embed(items[rank::world])
        shares: list[list[Tensor]] = [[] for _ in range(world)]
        dist.all_gather_object(shares, own)
        vectors = torch.empty(len(items), self._joint_dim)
        for start, share in enumerate(shares):
            if share:
                vectors[start::world] = torch.stack(share)
        return vectors

    def close(self) -> None:
        """Ends its threads."""
        self._loader.close()


class ClapEmbedder(AudioEmbedder):
    """A contrastive stage's towers.

    Args:
        checkpoint: of ``config.stage``; None: its newest one.

    Raises:
        ConfigError: ``config.stage`` is no contrastive stage.
        FileNotFoundError: it has no checkpoint.
    """

    def __init__(self, config: Config, checkpoint: Path | None = None) -> None:
        self.config = replace(config, parallel=ParallelConfig())
        self.stage = config.curriculum[config.stage]
        objective = spec_of(self.stage)
        if not objective.embeds:
            raise ConfigError("nothing to compare", [f"stage = {config.stage}: its objective is no contrastive one"])
        self.device = current_device()
        self._tokenizer = Tokenizer.load(config.data.tokenizer)
        checkpoint = checkpoint or resolve_entry(config, config.stage)
        groups = process_groups.initialize(self.config.parallel, config.seed)
        model = build_clap(self.config, self._tokenizer, self.device)
        load_parts(model, groups, checkpoint, objective.parts)
        self.model = cast(ClapModel, model.front).eval()
        loader = ClipLoader(self.config, max_windows=self.stage.max_windows, device=self.device)
        super().__init__(self.model.embed_audio, self.model.joint_dim, loader)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """text_TJ on the host, float32."""

        def embed(mine: Sequence[str]) -> list[Tensor]:
            found: list[Tensor] = []
            for begin in range(0, len(mine), BATCH_TEXTS):
                ids_TS, real_TS = self.model.clap.text.tokenize(mine[begin : begin + BATCH_TEXTS])
                found += self.model.embed_text(ids_TS.to(self.device.torch), real_TS.to(self.device.torch)).cpu()
            return found

        return self._shared(texts, embed)

    def close(self) -> None:
        """Ends its threads and leaves the process groups."""
        super().close()
        process_groups.destroy()


class PublishedEmbedder(AudioEmbedder):
    """The audio tower of a published CLAP, which hears as its folder says, whatever ``config.model`` does."""

    MAX_WINDOWS = 30
    """What is heard of a recording, as of the longest ones in training: 5 minutes of windows of 10 s."""

    def __init__(self, config: Config, folder: ClapFolder) -> None:
        model, device = folder.model, current_device()
        with torch.device("cpu"):
            encoder = encoder_of(model.encoder).build(model.front_end)
        folder.load(encoder)
        encoder.to(device.torch).eval()

        def embed(mel_WFM: Tensor, windows: Sequence[int]) -> Tensor:
            features_WLD = torch.cat([encoder(part) for part in torch.split(mel_WFM, WINDOWS_AT_ONCE)])
            return F.normalize(clip_means(features_WLD, windows), dim=-1)

        loader = ClipLoader(replace(config, model=model), max_windows=self.MAX_WINDOWS, device=device)
        super().__init__(embed, model.clap.joint_dim, loader)
