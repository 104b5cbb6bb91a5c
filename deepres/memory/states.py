"""What a process holds besides activations: parameters, gradients, optimizer state and communication buckets."""

from __future__ import annotations

from dataclasses import dataclass

from deepres.config import FP32_BYTES, EngineConfig


@dataclass(frozen=True)
class ModelStates:
    """Bytes on the device of one process.

    NOTE [ Who holds what of the model ]
    P is the bytes of all parameters, w the number of processes, B a bucket's bytes (never above P).

                       parameters     gradients       optimizer    buckets
    plain, w = 1       P              P               P            0
    plain (DDP)        P              P, or 2P        P            2B
    fairscale          P              P               P/w          P + 2B
    DeepSpeed, ZeRO 0  P              P               P            P
    DeepSpeed, ZeRO 1  P              P + 2P/w        2P/w         B
    DeepSpeed, ZeRO 2  P              P + 2P/w        2P/w         B
    DeepSpeed, ZeRO 3  P/w + P        3P/w            2P/w         3B

    DDP's gradients are views of its buckets; those of a step's micro batches before the last are not, and stay until
    the last one's are added to them.

    The optimizer's are momentum and, under ZeRO 1 to 3, a second fp32 copy of this process's share of the
    parameters. ZeRO's gradients are counted at their peak: as produced, as collected, and as flattened for the
    update; ZeRO 3's parameters with all of them gathered. If the optimizer is offloaded, its state and the
    gradients' shares are on the host; if parameters are offloaded, so are their shares. These are upper bounds,
    within 0.7 P of what DeepSpeed 0.19 and fairscale 0.4.13 were seen to allocate; these peaks need not coincide with
    the activation peak: whole steps of ResNet-18 used up to 2.4 P less than the sum (fairscale, ZeRO in one process).

    Attributes:
        parameters_bytes, gradients_bytes, optimizer_bytes, buckets_bytes: see the note.
    """

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    buckets_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.parameters_bytes + self.gradients_bytes + self.optimizer_bytes + self.buckets_bytes


def model_states(
    num_parameters: int,
    engine: EngineConfig,
    world_size: int,
    *,
    has_momentum: bool = True,
    accumulates: bool = False,
) -> ModelStates:
    """The model states that an engine holds; see NOTE [ Who holds what of the model ].

    Args:
        num_parameters: the number of trained parameters.
        engine: how a step is run.
        world_size: the run's number of processes.
        has_momentum: whether the optimizer has momentum; if not, its only bytes are those of ZeRO's copy.
        accumulates: whether a step has several micro batches.
    """
    whole = num_parameters * FP32_BYTES
    share, momentum = -(-whole // world_size), whole * has_momentum
    bucket = engine.bucket_elements(num_parameters) * FP32_BYTES
    if engine.name == "plain":
        if world_size == 1:
            return ModelStates(whole, whole, momentum, 0)
        return ModelStates(whole, whole * (1 + accumulates), momentum, 2 * bucket)
    if engine.name == "fairscale":
        return ModelStates(whole, whole, min(momentum, share), whole + 2 * bucket)
    if engine.zero_stage == 0:
        return ModelStates(whole, whole, momentum, whole)
    optimizer = 0 if engine.offload_optimizer else share + min(momentum, share)
    shares = 0 if engine.offload_optimizer else share
    if engine.zero_stage < 3:
        return ModelStates(whole, whole + 2 * shares, optimizer, bucket)
    own = 0 if engine.offload_parameters else share
    return ModelStates(own + whole, share + 2 * shares, optimizer, 3 * bucket)
