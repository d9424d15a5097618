"""What contrastive pre-training costs: the loss as the batch grows, and windows through mel and encoder.

    result = measure(Path(folder), progress)      # tools/bench.py clap

Loss: forward and backward, chunked (``clap_loss``) and dense (the whole similarity matrix at once), with four captions
a sample, half of them hard negatives, in the joint space of 512. Peak memory is what a fresh process grows by.
Encoder: audio seconds per second of processor time, HTS-AT of the demo's, the tiny and the released size, with our
batched mel and with the public code's, which builds a mel front end anew for every window and stacks its output four
times (``src/factory.py``); and what part the encoder alone reaches of what a large matrix product computes.
"""

import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from dali_pipes.mel import MelPipeline, Pcm
from megatron_af.audio.clap_loss import af_clap_loss
from megatron_af.audio.encoder import encoder_of
from megatron_af.audio.htsat import HTSAT
from megatron_af.bench.machine import matmul_rate
from megatron_af.config import EncoderConfig, FrontEndConfig
from megatron_af.flops import Amounts, Tally
from megatron_af.processes import processes
from megatron_af.progress import Progress

CAPTIONS = (64, 256, 1024, 4096)
CAPTIONS_PER_SAMPLE = 4
JOINT_DIM = 512
ENCODERS = {
    "demo": EncoderConfig(
        embed_dim=48, depths=(2, 2, 2), heads=(3, 6, 12), patch_size=8, fusion=False, classes=0, stft_weights=False
    ),
    "tiny": EncoderConfig(embed_dim=96, depths=(2, 2, 6, 2)),
    "large": EncoderConfig(),
}
WINDOWS = {"demo": 16, "tiny": 16, "large": 4}


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """
    Returns:
        ``loss``: per number of captions ``{chunked, dense: {seconds, mebibytes}}``; ``encoder``: per size
        ``{ours, per_window}`` in audio seconds per second, and ``limit``.
    """
    torch.set_num_threads(1)
    losses: dict[int, dict[str, Any]] = {}
    for number, captions in enumerate(CAPTIONS, 1):
        losses[captions] = {kind: _in_fresh_process(kind, captions) for kind in ("chunked", "dense")}
        progress.update("loss", number, len(CAPTIONS), f"{captions} captions")
    encoders = {}
    for number, (size, config) in enumerate(ENCODERS.items(), 1):
        encoders[size] = throughput(config, WINDOWS[size])
        progress.update("encoder", number, len(ENCODERS), size)
    return {"loss": losses, "encoder": encoders}


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    loss = Table("captions", "chunked ms", "dense ms", "chunked MiB", "dense MiB", title="AF-CLAP loss, one step")
    for captions, kinds in result["loss"].items():
        chunked, dense = kinds["chunked"], kinds["dense"]
        times = [f"{1000 * kind['seconds']:.1f}" for kind in (chunked, dense)]
        loss.add_row(str(captions), *times, *(f"{kind['mebibytes']:.0f}" for kind in (chunked, dense)))
    encoder = Table(
        "encoder", "ours", "mel per window", "ratio", "alone, of the limit",
        title="audio seconds per processor second, mel and forward",
    )  # fmt: skip
    for size, rates in result["encoder"].items():
        ratio = rates["ours"] / rates["per_window"]
        both = [f"{rates[way]:.1f}" for way in ("ours", "per_window")]
        encoder.add_row(size, *both, f"{ratio:.2f}", f"{rates['limit']:.0%}")
    return [loss, encoder]


def dense_loss(
    audio_BD: Tensor,
    positives_PD: Tensor,
    positive_of_P: Tensor,
    negatives_ND: Tensor,
    negative_of_N: Tensor,
    scale: Tensor,
) -> Tensor:
    """The same loss from the whole matrix of similarities, [B]."""
    own_BP = torch.arange(len(audio_BD))[:, None] == positive_of_P
    own_BN = torch.arange(len(audio_BD))[:, None] == negative_of_N
    score_BP = scale * audio_BD @ positives_PD.t()
    score_BN = (scale * audio_BD @ negatives_ND.t()).masked_fill(~own_BN, -torch.inf)
    everything = torch.logsumexp(torch.cat([score_BP, score_BN], 1), 1)
    return everything - torch.logsumexp(score_BP.masked_fill(~own_BP, -torch.inf), 1)


def loss_inputs(captions: int) -> list[Tensor]:
    """Unit vectors and owners of a batch; the first, second and fourth want gradients."""
    samples, half = captions // CAPTIONS_PER_SAMPLE, captions // 2
    generator = torch.Generator().manual_seed(0)

    def vectors(count: int) -> Tensor:
        return F.normalize(torch.randn(count, JOINT_DIM, generator=generator), dim=-1).requires_grad_()

    owner = torch.arange(half) // (CAPTIONS_PER_SAMPLE // 2)
    return [vectors(samples), vectors(half), owner, vectors(half), owner, torch.tensor(1 / 0.07)]


def _in_fresh_process(kind: str, captions: int) -> dict[str, float]:
    with processes(1) as pool:
        return pool.submit(_loss_cost, kind, captions).result()


def _loss_cost(kind: str, captions: int) -> dict[str, float]:
    torch.set_num_threads(1)
    loss = af_clap_loss if kind == "chunked" else dense_loss
    # What first calls allocate for good, those of recomputation included.
    _step(partial(af_clap_loss, chunk=4) if kind == "chunked" else dense_loss, loss_inputs(64))
    inputs = loss_inputs(captions)
    before = _peak_mebibytes()
    _step(loss, inputs)
    grown = _peak_mebibytes() - before
    return {"seconds": _best_seconds(lambda: _step(loss, inputs)), "mebibytes": grown}


def _step(loss: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    torch.autograd.backward([loss(*inputs).mean()])


def _peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def throughput(config: EncoderConfig, windows: int) -> dict[str, float]:
    """Of some windows together, and what part of a large matrix product's rate, taken just before and after."""
    front_end = FrontEndConfig()
    encoder = HTSAT(front_end, config).eval()
    rng = np.random.default_rng(0)
    waves = [rng.uniform(-0.9, 0.9, front_end.window_samples).astype(np.float32) for _ in range(windows)]
    pipeline = MelPipeline(front_end, device="cpu", device_id=None, threads=1)
    paths: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: pipeline.run([Pcm(wave) for wave in waves], [1] * windows),
        "per_window": lambda: mel_window_by_window(waves, front_end),
    }

    def encode(mel: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            encoder(mel())

    seconds, made, tally = windows * front_end.window_seconds, paths["ours"](), Tally(lambda name: False)
    encoder_of(config).tally(tally)
    before = _rate()
    alone = _best_seconds(lambda: encode(lambda: made))
    rate = max(before, _rate())  # the best of both, as of the encoder
    found = {name: seconds / _best_seconds(lambda mel=mel: encode(mel)) for name, mel in paths.items()}  # type: ignore[misc]
    return found | {"limit": tally.of(Amounts(windows=windows)) / alone / rate}


def _rate() -> float:
    return max(matmul_rate(torch.device("cpu"), 1024, torch.float32) for _ in range(3))


def mel_window_by_window(waves: list[NDArray[np.float32]], front_end: FrontEndConfig) -> Tensor:
    """The public code's front end restated: for each window a new filter bank and analysis window, and four copies."""
    stacked = []
    for wave in waves:
        spectrum = torch.stft(
            torch.from_numpy(wave),
            front_end.fft_size,
            front_end.hop_samples,
            window=torch.hann_window(front_end.fft_size),
            return_complex=True,
        )
        power_FM = spectrum.abs().square().t() @ _htk_filters(front_end)
        mel_FM = 10 * torch.log10(power_FM.clamp(min=1e-10))
        stacked.append(torch.stack([mel_FM] * 4))
    return torch.stack(stacked)[:, 0]


def _htk_filters(front_end: FrontEndConfig) -> Tensor:
    def mel(hz: float) -> float:
        return 2595 * float(np.log10(1 + hz / 700))

    corners = torch.linspace(mel(front_end.min_hz), mel(front_end.max_hz), front_end.mel_bins + 2)
    corners = 700 * (10 ** (corners / 2595) - 1)
    bins = torch.linspace(0, front_end.sample_rate / 2, front_end.fft_size // 2 + 1)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def _best_seconds(work: Callable[[], object], runs: int = 3) -> float:
    """Processor time, the best of some runs: what disturbs a measurement only adds to it."""
    best = float("inf")
    for _ in range(runs):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best
