"""DeepSpeed: ZeRO stages 0 to 3, with optimizer states and parameters on the CPU by option."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from deepres.batch_sizes import BatchSizes
from deepres.config import Config
from deepres.distributed import Process, start_process_group
from deepres.engines.base import Engine, on_cpu
from deepres.memory.states import bucket_elements
from deepres.models import ResidualUnit
from deepres.optim import sgd

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed
    from deepspeed.utils import logger, set_z3_leaf_modules

# DeepSpeed calls collectives by names that newer PyTorch renames, and warns of SGD under ZeRO, at every step.
warnings.filterwarnings(
    "ignore", message=r"`torch\.distributed\.\w+_tensor` is deprecated", category=FutureWarning
)
logger.setLevel(logging.ERROR)
# On CPUs it would compile, for a minute and into a cache that processes share, a collective for inference alone.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeedEngine(Engine):
    """Model states are sharded by DeepSpeed; its settings are generated from the run's configuration."""

    def __init__(self, net: nn.Module, config: Config, process: Process, sizes: BatchSizes) -> None:
        super().__init__(net, config, process, sizes)
        start_process_group(process)
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        if config.engine.zero_stage == 3:
            # A unit's parameters are gathered together: its replays read them outside of its layers' forwards.
            set_z3_leaf_modules(self.module, [ResidualUnit])
        self.module.to(process.device)
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=self.module,
            optimizer=sgd(net.parameters(), config.optim),
            config=deepspeed_settings(config, sizes, sum(p.numel() for p in net.parameters())),
        )
        self.module = self._engine

    def state(self) -> dict[str, Tensor]:
        """See `Engine.state`; under ZeRO-3, one parameter is gathered at a time."""
        if self.config.engine.zero_stage < 3:
            return super().state()
        state = {}
        for name, tensor in self.net.state_dict(keep_vars=True).items():
            parameters = [tensor] if isinstance(tensor, nn.Parameter) else []
            with deepspeed.zero.GatheredParameters(parameters):
                state[name] = on_cpu(tensor)
        return state

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

    def _backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def _update(self) -> None:
        self._engine.step()


def deepspeed_settings(config: Config, sizes: BatchSizes, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run.

    Buckets, which DeepSpeed allocates whole (5e8 elements unless told otherwise), are clamped to the model.
    """
    bucket = bucket_elements(config.engine, num_parameters)
    zero: dict[str, Any] = {
        "stage": config.engine.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
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
    if config.precision.compute == "fp16":  # for its loss scaling; the net enters autocast by itself
        settings["torch_autocast"] = {"enabled": True, "dtype": "float16"}
    return settings
