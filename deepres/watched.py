"""Whether hooks see what goes into a module or comes out of it."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as of_all


def is_watched(module: nn.Module) -> bool:
    """Whether there are forward hooks or forward pre-hooks, of the module or of all modules."""
    own = module._forward_pre_hooks or module._forward_hooks
    return bool(own or of_all._global_forward_pre_hooks or of_all._global_forward_hooks)
