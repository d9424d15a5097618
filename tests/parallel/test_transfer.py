"""A step's tensors reach the device in one copy, and no layer copies anything."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import random as megatron_random
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_af.audio.encode_ahead import EncodeAhead, key_layout
from megatron_af.audio.features import ClipFeatures, KnownFeatures
from megatron_af.data.batch import StepAudio
from megatron_af.decoder.stretches import Sight
from megatron_af.model import AudioFront
from megatron_af.parallel.device import make_megatron_portable
from megatron_af.parallel.transfer import copies, send, there
from megatron_af.train.objectives.answer_learner import AnswerLearner, token_shares
from tests import tiny
from tests.decoder.fake_world import NoRandomStates, fake_world
from tests.decoder.toy import build_chunks
from tests.distributed import run_distributed

TYPES = (torch.int64, torch.int32, torch.bool, torch.float64, torch.bfloat16, torch.float32)


def test_a_packed_copy_is_every_tensor() -> None:
    shapes = ((3, 5), (7,), (), (0, 4), (2, 3, 1))
    tensors = [torch.randint(0, 2, shape).to(kind) for shape in shapes for kind in TYPES]
    tensors.append(torch.arange(6).view(2, 3).t())  # a view that does not lie in order
    for tensor, copy in zip(tensors, copies(tensors, torch.device("cpu")), strict=True):
        assert copy.dtype == tensor.dtype and torch.equal(copy, tensor)
        assert not copy.numel() or copy.data_ptr() != tensor.data_ptr()


def test_what_was_sent_is_there_and_what_was_not_is_copied() -> None:
    meta, cpu = torch.device("meta"), torch.device("cpu")
    tensor, other = torch.ones(3), torch.ones(3)
    send([tensor], meta)
    assert there(tensor, meta) is there(tensor, meta) and there(tensor, meta).is_meta
    assert there(other, meta).is_meta and there(other, meta) is not there(other, meta)
    assert there(tensor, cpu) is tensor, "the host keeps its own"
    send([other], cpu)
    assert there(other, cpu) is other and not hasattr(other, "sent")


class Crossings(TorchDispatchMode):
    """Counts copies from the host to the device, and those of them that a layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.in_layers = self.depth = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        copied = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        source = args[1] if func.overloadpacket is torch.ops.aten.copy_ else args[0] if args else None
        if copied and isinstance(source, Tensor) and (source.device.type, made.device.type) == ("cpu", "meta"):
            self.all += 1
            self.in_layers += self.depth > 0
        return made

    def watch(self, layer: torch.nn.Module) -> None:
        def step(by: int) -> None:
            self.depth += by

        layer.register_forward_pre_hook(lambda *_: step(1))
        layer.register_forward_hook(lambda *_: step(-1))


def crossings(rank: int, world_size: int, sent: bool) -> tuple[int, int, int]:
    """Copies of a step, those of layers, and micro-batches."""
    make_megatron_portable(target="meta")
    megatron_random._CUDA_RNG_STATE_TRACKER = NoRandomStates()
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
    config, meta = tiny.config(), torch.device("meta")
    batch = tiny.step_batch(0, dp_rank=0, dp_size=1, mp_rank=0, mp_size=1)
    rows = batch.text.rows
    shares = [token_shares(micro_batch) for micro_batch in rows]
    assert all(micro_batch.supervised for micro_batch in rows)  # from their values, which are gone in there
    per_window = tiny.config().model.encoder.tokens_per_window
    starts = dict.fromkeys(range(len(batch.audio.clip_windows)), 0)
    sights = [
        Sight.of(r, key_layout(r.clips, batch.audio.clip_windows, starts, per_window)[1]) for r in rows
    ]
    with fake_world(config.parallel, 0), torch.device("meta"):
        (lm,) = build_chunks(config, first_added_id=90)
        front = AudioFront(config, tiny.VOCABULARY)
    lm.rotary_pos_emb.inv_freq = lm.rotary_pos_emb.inv_freq.to(meta)  # on a GPU it begins there
    front.encoder.requires_grad_(False)
    with fake_world(config.parallel, 0), functorch_config.patch(fake_tensor_allow_meta=True), \
            FakeTensorMode(allow_non_fake_inputs=True), Crossings() as counted:  # fmt: skip
        for layer in lm.decoder.layers:
            counted.watch(layer)
        found = [torch.randn(n, front.tokens_per_window, front.feature_dim) for n in batch.audio.clip_windows]
        audio = StepAudio(
            clip_windows=batch.audio.clip_windows,
            owners=batch.audio.owners,
            mel_WFM=None,
            known=KnownFeatures(keys=("",) * len(found), found=tuple(found)),
            seconds=1.0,
        )
        groups: Any = SimpleNamespace(model=None, model_size=1, model_rank=0)
        ahead = EncodeAhead(
            SimpleNamespace(module=front),
            groups,
            meta,
            ClipFeatures(front, meta, torch.float32),  # type: ignore[arg-type]
        )
        keys = ahead.forward(audio, [micro_batch.clips for micro_batch in rows])
        if sent:
            AnswerLearner._send(SimpleNamespace(_device=meta), rows, shares, sights)  # type: ignore[arg-type]
        for index, micro_batch in enumerate(rows):
            losses_T = lm(micro_batch, keys[index], ahead.added_rows_NH, sight=sights[index])
            dataset_T, _, share_T = (there(x_T, meta) for x_T in shares[index])
            assert losses_T.shape == dataset_T.shape == share_T.shape
            losses_T.sum().backward()
        ahead.backward()
    return counted.all, counted.in_layers, len(rows)


@pytest.mark.slow
def test_a_step_copies_three_times_and_no_layer_does() -> None:
    """Cached features, places of audio tokens, rows; however many micro-batches it has."""
    ((all_of_them, in_layers, micro_batches),) = run_distributed(crossings, 1, True)
    assert (all_of_them, in_layers) == (3, 0) and micro_batches == 4
    ((unsent, _, _),) = run_distributed(crossings, 1, False)
    assert unsent >= 3 + 4 * micro_batches, "what was not sent is copied one by one"
