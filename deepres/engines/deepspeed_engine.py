"""DeepSpeed: ZeRO stages 0 to 3, optionally with optimizer states and parameters offloaded to the CPU."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deepres.batch_sizes import BatchSizes
from deepres.config import Config
from deepres.distributed import Process, start_process_group
from deepres.engines.base import MOMENTUM, Engine, on_cpu
from deepres.models import ResidualUnit
from deepres.optim import sgd

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed
    from deepspeed.utils import (
        logger,
        safe_get_full_optimizer_state,
        safe_set_full_optimizer_state,
        safe_set_local_optimizer_state,
        set_z3_leaf_modules,
    )

# At every step, DeepSpeed calls collectives by names that newer PyTorch deprecates, and warns of SGD under ZeRO.
warnings.filterwarnings(
    "ignore", message=r"`torch\.distributed\.\w+_tensor` is deprecated", category=FutureWarning
)
logger.setLevel(logging.ERROR)
# On CPUs it would compile a collective that only inference uses, for a minute and in a cache that processes share.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeedEngine(Engine):
    """Model states are sharded by DeepSpeed; its settings are generated from the run's configuration."""

    def __init__(self, net: nn.Module, config: Config, process: Process, sizes: BatchSizes) -> None:
        super().__init__(net, config, process, sizes)
        start_process_group(process)
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        if config.engine.zero_stage == 3:
            # Gather a unit's parameters together: its replays read them outside its layers' `forward`.
            set_z3_leaf_modules(self.module, [ResidualUnit])
        self.module.to(process.device)
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=self.module,
            optimizer=sgd(net.parameters(), config.optim),
            config=deepspeed_settings(config, sizes, sum(p.numel() for p in net.parameters())),
        )
        self.module = self._engine

    def whole_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """See `Engine.whole_parameters`; under ZeRO-3, parameters are gathered one at a time."""
        if self.config.engine.zero_stage < 3:
            yield from super().whole_parameters()
            return
        # Parameters that evaluation left gathered have the communication's dtype, and would be taken as they are.
        self._engine.empty_partition_cache()
        for name, parameter in self.net.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                whole = on_cpu(parameter)
            yield name, whole

    @property
    def loss_scaler(self) -> torch.amp.GradScaler | None:
        """See `Engine`."""
        if self.config.engine.zero_stage == 0:
            scaler: torch.amp.GradScaler | None = self._engine.torch_autocast_z0_gradscaler
        else:
            scaler = self._optimizer.torch_autocast_gradscaler
        return scaler

    def _backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def _gradients(self) -> list[Tensor]:
        # ZeRO looks at the norm of the whole gradient and skips a step by itself.
        return [] if self.config.engine.zero_stage > 0 else super()._gradients()

    def _update(self) -> bool:
        scaler = self.loss_scaler
        before = 0.0 if scaler is None else scaler.get_scale()
        clip = self.config.optim.clip_grad_norm
        if scaler is not None and clip is not None and self.config.engine.zero_stage > 0:
            self._optimizer.clip_grad = clip * before  # ZeRO clips before it divides by autocast's loss scale
        self._engine.step()
        is_updated: bool = self._engine.was_step_applied()
        if scaler is None:
            return is_updated
        if not is_updated and scaler.get_scale() == before:  # ZeRO skips, but leaves the scaler as it was
            lowered = {"scale": before * scaler.get_backoff_factor(), "_growth_tracker": 0}
            scaler.load_state_dict(scaler.state_dict() | lowered)
        return scaler.get_scale() >= before

    def _make_momentum(self) -> None:
        stage, zero = self.config.engine.zero_stage, self._optimizer
        if stage == 0:
            return
        flats = zero.single_partition_of_fp32_groups if stage < 3 else zero.fp32_partitioned_groups_flat
        for flat in flats:
            zero.optimizer.state[flat][MOMENTUM] = torch.zeros_like(flat, requires_grad=False)
        if stage < 3:
            # As after ZeRO's first step: map each parameter to its part of the flat momentum.
            zero._lazy_init_hp_params_optimizer_state()

    def _whole_momentum(self, parameter: nn.Parameter) -> Tensor:
        if self.config.engine.zero_stage == 0:
            return super()._whole_momentum(parameter)
        momentum: Tensor = safe_get_full_optimizer_state(parameter, MOMENTUM)
        return momentum

    def _set_momentum(self, parameter: nn.Parameter, whole: Tensor) -> None:
        stage = self.config.engine.zero_stage
        if stage == 0:
            super()._set_momentum(parameter, whole)
        elif stage < 3:
            safe_set_full_optimizer_state(parameter, whole, MOMENTUM)
        else:
            # The function for whole tensors fails if their size is not divisible by the number of processes.
            num_mine = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # DeepSpeed's
            padded = torch.zeros(num_mine * self.process.world_size, dtype=whole.dtype)
            padded[: whole.numel()] = whole.reshape(-1)
            mine = padded[num_mine * self.process.rank :][:num_mine]
            safe_set_local_optimizer_state(parameter, mine, MOMENTUM)


def deepspeed_settings(config: Config, sizes: BatchSizes, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run.

    Buckets are clamped to the model's size, as DeepSpeed allocates them whole (5e8 elements by default).
    """
    bucket = config.engine.bucket_elements(num_parameters)
    zero: dict[str, Any] = {
        "stage": config.engine.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket + bucket % 2,  # DeepSpeed insists on an even number
        "overlap_comm": False,
        "contiguous_gradients": True,
    }
    if config.engine.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": bucket,
            "stage3_max_reuse_distance": bucket,
            "stage3_param_persistence_threshold": 0,
        }
    pinned = torch.cuda.is_available()
    if config.engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    if config.engine.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    settings: dict[str, Any] = {
        "train_batch_size": sizes.global_size,
        "train_micro_batch_size_per_gpu": sizes.micro_size,
        "gradient_accumulation_steps": sizes.accumulation,
        "gradient_clipping": config.optim.clip_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if config.precision.compute == "fp16":  # only for its loss scaling: the net enters autocast by itself
        settings["torch_autocast"] = {"enabled": True, "dtype": "float16"}
    return settings
