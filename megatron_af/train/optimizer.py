"""One optimizer over the decoder and the audio side: one global gradient norm, one schedule, ZeRO-1 or not.

    optimizer = build_optimizer(config.parallel, stage.optimizer, config.precision, chunks, front, groups)
    grad_norm = optimizer.step_checked()

The state of an optimizer is saved in one form, whatever sharded it: for each trainable parameter
``optimizer.exp_avg.<name>``, ``optimizer.exp_avg_sq.<name>`` and, in bf16, the float32 ``optimizer.master.<name>``;
and one number of steps. So a checkpoint written with ZeRO-1 loads without it and the other way round, in any layout.
In float32 the weights are their own masters, and are stored once.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import clip_grads, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer, Float16OptimizerWithFloat16Params, MegatronOptimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, ParamGroupOverride
from torch import nn

from megatron_af.config import OptimizerConfig, ParallelConfig
from megatron_af.parallel.collectives import all_gather
from megatron_af.parallel.groups import Groups
from megatron_af.train.zero1_state import MOMENTS, held, parts_of, whole_states


class NonFiniteGradient(RuntimeError):
    """The gradient norm, agreed over all ranks, is NaN or infinite."""


class AudioFlamingoOptimizer(ChainedOptimizer):
    """Chain of megatron-core optimizers that refuses non-finite gradients and knows how to be saved.

    A parameter with an attribute ``highest`` never gets above it: it is put back after the step, as CLIP does with its
    temperature, and so keeps a gradient that can take it away again.
    """

    def __init__(self, members: list[MegatronOptimizer], parameters: Iterable[nn.Parameter] = ()) -> None:
        """
        Args:
            parameters: of the models that the members train.
        """
        super().__init__(members)
        self._limited = [parameter for parameter in parameters if hasattr(parameter, "highest")]

    @torch.no_grad()
    def step_checked(self) -> float:
        """Clip by the global norm and update the weights.

        Returns:
            The gradient norm before clipping, equal on all ranks.

        Raises:
            NonFiniteGradient: on every rank alike, before any weight has changed.
        """
        self.prepare_grads()
        grad_norm = float(self.get_grad_norm())
        if not math.isfinite(grad_norm):
            raise NonFiniteGradient(f"the gradient norm is {grad_norm}; no weight was changed in this step")
        for optimizer in self._members():
            if optimizer.config.clip_grad > 0:
                clip_grad_by_total_norm_fp32(
                    optimizer.get_parameters(), max_norm=optimizer.config.clip_grad, total_norm=grad_norm
                )
        self.step_with_ready_grads()
        for parameter in self._limited:
            # In bf16 the optimizer goes on from its float32 copy, of which a ZeRO-1 rank may hold none.
            for copy in (parameter, getattr(parameter, "main_param", None)):
                if copy is not None:
                    copy.clamp_(max=parameter.highest)
        return grad_norm

    def sharded_state(self, model_state: dict[str, Any], num_steps: int, *, is_loading: bool) -> dict[str, Any]:
        """State as sharded tensors for ``dist_checkpointing``; also the frame to load into.

        Args:
            model_state: sharded state of the model, holding the parameters themselves.
            num_steps: optimizer steps behind this state.
        """
        sharded_of = _sharded_by_parameter(model_state)
        state: dict[str, Any] = {}
        for index, optimizer in enumerate(self.chained_optimizers):
            if not _holds_parameters(optimizer):
                continue
            _set_steps(optimizer, None)
            states: States
            if not isinstance(optimizer, DistributedOptimizer):
                states = _own_states(optimizer)
            elif is_loading:
                states = _to_read(optimizer)
            else:
                states = ((parameter, tensors, 0) for parameter, tensors in whole_states(optimizer))
            # The entry of each parameter under its own key: by it, a loading rank finds what it asked for.
            state[f"member{index}"] = {
                sharded_of[id(parameter)].key: _sharded(sharded_of[id(parameter)], tensors, copy)
                for parameter, tensors, copy in states
            }
            _set_steps(optimizer, num_steps)
        return state

    def load_sharded_state(self, state: dict[str, Any], num_steps: int) -> None:
        """Take over what ``dist_checkpointing.load`` filled into :meth:`sharded_state`."""
        for index, optimizer in enumerate(self.chained_optimizers):
            if not _holds_parameters(optimizer):
                continue
            loaded = state[f"member{index}"].values()
            _set_steps(optimizer, None)
            if isinstance(optimizer, DistributedOptimizer):
                for (parameter, (begin, end), _), tensors in zip(held(optimizer), loaded, strict=True):
                    for name, part in parts_of(optimizer, parameter).items():
                        part.data.copy_(tensors[name].flatten()[begin:end])
            else:
                for (_, kept, _), tensors in zip(_own_states(optimizer), loaded, strict=True):
                    for name, tensor in kept.items():
                        tensor.copy_(tensors[name])
            _set_steps(optimizer, num_steps)

    def gather_gradients(self) -> None:
        """Make gradients whole where ZeRO-1 left each rank the sum of its own share; a collective."""
        for optimizer in self._members():
            if isinstance(optimizer, DistributedOptimizer):
                for buffer in optimizer.buffers:
                    group = buffer.data_parallel_group
                    for bucket in buffer.buckets:
                        own = bucket.grad_data.chunk(group.size())[group.rank()].clone()
                        all_gather(bucket.grad_data, own, group)

    def held_state(self) -> Iterator[tuple[torch.Tensor, str, dict[str, torch.Tensor]]]:
        """Parameters, which stretch of them is this rank's (empty: all), and its tensors of their state, as they are;
        nothing before the first step."""
        for optimizer in self._members():
            inner = optimizer.optimizer.state
            if not isinstance(optimizer, DistributedOptimizer):
                for parameter, main in _parameters_with_main(optimizer):
                    tensors = {moment: inner[main][moment] for moment in MOMENTS if moment in inner.get(main, ())}
                    yield parameter, "", tensors if main is parameter else tensors | {"master": main.detach()}
            elif inner:
                for parameter, (begin, end), _ in held(optimizer):
                    yield parameter, f"[{begin}:{end}]", parts_of(optimizer, parameter)

    def _members(self) -> Iterator[MegatronOptimizer]:
        return (o for o in self.chained_optimizers if _holds_parameters(o))


type States = Iterator[tuple[torch.Tensor, dict[str, torch.Tensor], int | None]]
"""Parameters, the tensors of their states, and the how manieth copy these are; None: as many as of the weight."""


def _to_read(optimizer: DistributedOptimizer) -> States:
    """Room in host memory for the whole state of each parameter of which this rank holds a part."""
    for parameter, _, is_writer in held(optimizer):
        names = parts_of(optimizer, parameter)
        room = {name: torch.empty(parameter.shape, dtype=torch.float32, device="cpu") for name in names}
        yield parameter, room, 0 if is_writer else 1


def _own_states(optimizer: MegatronOptimizer) -> States:
    """The tensors themselves, where each rank has those of all of its parameters."""
    for parameter, main in _parameters_with_main(optimizer):
        state = optimizer.optimizer.state[main]
        tensors = {moment: state[moment] for moment in MOMENTS}
        yield parameter, tensors if main is parameter else tensors | {"master": main.detach()}, None


def _sharded(
    weight: ShardedTensor | ShardedTensorFactory, tensors: dict[str, torch.Tensor], copy: int | None
) -> dict[str, ShardedTensor | ShardedTensorFactory]:
    """Cut over tensor and pipeline ranks as the weight is; the first copy is what is written."""
    if copy is not None:
        weight = replace(weight, replica_id=(*weight.replica_id[:-1], copy))
    return {name: make_sharded_optimizer_tensor(weight, x, f"optimizer.{name}") for name, x in tensors.items()}


def _holds_parameters(optimizer: MegatronOptimizer) -> bool:
    return optimizer.optimizer is not None and bool(optimizer.get_parameters())


def _set_steps(optimizer: MegatronOptimizer, num_steps: int | None) -> None:
    """Make sure that the moments exist and count ``num_steps`` (None: without a counter).

    torch's AdamW keeps a counter per parameter, Transformer Engine's one per group. megatron-core 0.19 trips over
    the former when it saves and loads ZeRO-1 state, so it is taken out meanwhile; and each parameter gets a tensor
    of its own, for a shared one would be advanced once per parameter.
    """
    inner = optimizer.optimizer
    per_parameter = isinstance(inner, torch.optim.Optimizer) and type(inner).__module__.startswith("torch.")
    for group in inner.param_groups:
        if not per_parameter and num_steps is not None:
            group["step"] = num_steps
        for main in group["params"]:
            state = inner.state[main]
            for moment in MOMENTS:
                if moment not in state:
                    state[moment] = torch.zeros_like(main, dtype=torch.float32)
            state.pop("step", None)
            if per_parameter and num_steps is not None:
                state["step"] = torch.tensor(float(num_steps))


def _parameters_with_main(optimizer: MegatronOptimizer) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Model parameter and the float32 tensor that the inner optimizer updates for it."""
    if isinstance(optimizer, Float16OptimizerWithFloat16Params):
        groups = zip(
            optimizer.float16_groups + optimizer.fp32_from_fp32_groups,
            optimizer.fp32_from_float16_groups + optimizer.fp32_from_fp32_groups,
            strict=True,
        )
        for model_group, main_group in groups:
            yield from zip(model_group, main_group, strict=True)
    else:
        for parameter in optimizer.get_parameters():
            yield parameter, parameter


def _sharded_by_parameter(model_state: dict[str, Any]) -> dict[int, ShardedTensor | ShardedTensorFactory]:
    sharded, _ = extract_sharded_tensors_and_factories(model_state)
    return {id(tensor.data): tensor for tensor in nested_values(sharded)}


def build_optimizer(
    parallel: ParallelConfig,
    optimizer: OptimizerConfig,
    precision: str,
    models: list[DistributedDataParallel],
    front: DistributedDataParallel | None,
    groups: Groups,
) -> AudioFlamingoOptimizer:
    """AdamW over the decoder's chunks (in megatron-core's groups) and the audio side (replicated on the world)."""
    if clip_grads.l2_norm_impl is getattr(clip_grads, "local_multi_tensor_l2_norm", None):
        clip_grads.l2_norm_impl = norm_of_all
    bf16 = precision == "bf16"
    config = MegatronOptimizerConfig(
        optimizer="adam",
        lr=optimizer.learning_rate,
        min_lr=optimizer.min_learning_rate,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_eps=optimizer.eps,
        clip_grad=optimizer.clip_norm,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=parallel.distributed_optimizer,
        overlap_param_gather=parallel.overlap and parallel.distributed_optimizer,
    )
    # Every rank builds both, even where it holds nothing to train: building is a collective.
    members: list[MegatronOptimizer] = []
    if models:
        members += get_megatron_optimizer(config, models, _overrides(optimizer)).chained_optimizers
    if front is not None:
        front_optimizer = get_megatron_optimizer(
            config,  # what overlaps is up to each model's own DDP configuration: here nothing does
            [front],
            _overrides(optimizer),
            use_gloo_process_groups=False,
            pg_collection=groups.front,
        )
        members += front_optimizer.chained_optimizers
    trained = [*models, *([] if front is None else [front])]
    return AudioFlamingoOptimizer(members, (parameter for model in trained for parameter in model.parameters()))


def norm_of_all(
    chunk: int, overflow: torch.Tensor, tensors: list[list[torch.Tensor]], per_tensor: bool
) -> tuple[torch.Tensor, None]:
    """In the place of megatron-core's own, which without Transformer Engine asks a GPU for one norm after the other and
    waits for each: the same to the last bit."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors[0]))).view(1), None


def _overrides(optimizer: OptimizerConfig) -> dict[ParamKey, ParamGroupOverride]:
    """No weight decay on vectors and gates; learning rates of their own for gates and encoder."""

    def scaled(scale: float) -> ParamGroupOverride:
        return ParamGroupOverride(max_lr=scale * optimizer.learning_rate, min_lr=scale * optimizer.min_learning_rate)

    vector = ParamPredicate(name="vector", fn=lambda parameter: parameter.dim() <= 1)
    overrides = {ParamKey(predicate=vector): ParamGroupOverride(wd_mult=0.0)}
    if optimizer.gate_learning_rate_scale != 1.0:
        overrides[ParamKey(name="*.gate_*")] = scaled(optimizer.gate_learning_rate_scale)
    if optimizer.encoder_learning_rate_scale != 1.0:
        overrides[ParamKey(name="module.encoder.*")] = scaled(optimizer.encoder_learning_rate_scale)
    return overrides


def build_schedule(optimizer: OptimizerConfig, steps: int, target: AudioFlamingoOptimizer) -> OptimizerParamScheduler:
    """Constant or cosine learning rate after a linear warm-up, in optimizer steps."""
    warmup = min(optimizer.warmup_steps, max(steps - 1, 0))
    return OptimizerParamScheduler(
        target,
        init_lr=0.0,
        max_lr=optimizer.learning_rate,
        min_lr=optimizer.min_learning_rate,
        lr_warmup_steps=warmup,
        lr_decay_steps=max(steps, warmup + 1),
        lr_decay_style=optimizer.schedule,
        start_wd=optimizer.weight_decay,
        end_wd=optimizer.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
    )
