"""The progress of a run, for tests that need a checkpoint alone."""

from deepres.checkpoints.identity import Identity
from deepres.checkpoints.snapshot import Progress

PROGRESS = Progress(
    step=3, steps_per_epoch=8, is_evaluated=False, test=None, sums=((0.0,) * 4,), metrics_bytes=0,
    has_averaged_buffers=False, num_processes=1, num_threads=1, batch_norm_size=1, loss_scaler=None, num_skipped=0,
    identity=Identity({}, {}),
)  # fmt: skip
