"""fairscale: optimizer states sharded (OSS), gradients reduced to their owner (ShardedDataParallel)."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from deepres.batch_sizes import BatchSizes
from deepres.config import Config
from deepres.distributed import Process, start_process_group
from deepres.engines.base import MOMENTUM, Engine
from deepres.optim import sgd_settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fairscale's last release imports what newer versions deprecate
    import torch
    import torch.distributed as dist
    from fairscale.nn.data_parallel import ShardedDataParallel
    from fairscale.optim import OSS
    from fairscale.optim.grad_scaler import ShardedGradScaler


class FairscaleEngine(Engine):
    """Every process holds all parameters, but gradients and momentum only of its share of them."""

    def __init__(self, net: nn.Module, config: Config, process: Process, sizes: BatchSizes) -> None:
        super().__init__(net, config, process, sizes)
        start_process_group(process)
        self.module.to(process.device)
        trained = [p for p in net.parameters() if p.requires_grad]
        self._optimizer = OSS(params=trained, optim=torch.optim.SGD, **sgd_settings(config.optim))
        self._owners = {
            parameter: rank
            for rank, groups in enumerate(self._optimizer.partition_parameters())
            for group in groups
            for parameter in group["params"]
        }
        if config.precision.compute == "fp16":
            self._scaler = ShardedGradScaler()
        num_elements = config.engine.bucket_elements(sum(p.numel() for p in trained))
        self.module = ShardedDataParallel(
            self.module, self._optimizer, broadcast_buffers=False, reduce_buffer_size=num_elements
        )

    def _accumulating(self, *, is_last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if is_last else self.module.no_sync()  # type: ignore[operator]  # the wrapper's

    def _clip(self, norm: float) -> None:
        self._optimizer.clip_grad_norm(norm)

    def _forget_gradients(self) -> None:
        self.module.zero_grad(set_to_none=True)

    def _whole_momentum(self, parameter: nn.Parameter) -> Tensor:
        owner = self._owners[parameter]
        if owner == self.process.rank:
            momentum: Tensor = self._optimizer.optim.state[parameter][MOMENTUM]
        else:
            momentum = torch.empty_like(parameter)
        if self.process.world_size > 1:
            dist.broadcast(momentum, owner)
        return momentum

    def _set_momentum(self, parameter: nn.Parameter, whole: Tensor) -> None:
        if self._owners[parameter] == self.process.rank:
            momentum = torch.empty_like(parameter).copy_(whole).detach()
            self._optimizer.optim.state[parameter][MOMENTUM] = momentum
