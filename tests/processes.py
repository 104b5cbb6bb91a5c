"""Start real processes as a user would, and read what they left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = "deepres/train.py"
QUICKSTART = "configs/quickstart.yaml"
SMALL = (
    "data.name=synthetic", "data.image_size=8", "data.num_images=64", "model.depth=11", "train.epochs=1",
    "train.global_batch_size=8", "log.every=2", "log.plots=false",
)  # fmt: skip
NO_PLAN = "recompute.segments=none"
PLAIN = ("engine.name=plain", "engine.zero_stage=0", NO_PLAN)


def environment(**variables: str) -> dict[str, str]:
    """This environment with the interpreter's scripts first on PATH, one thread, and nothing of a launcher's."""
    names = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "LOCAL_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    clean = {name: value for name, value in os.environ.items() if name not in names}
    scripts = str(Path(sys.executable).parent)
    return {
        **clean,
        "PATH": f"{scripts}{os.pathsep}{clean['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **variables,
    }


def run(*command: str | Path, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command from the repository's root."""
    return subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def torchrun(
    script: Path, *arguments: str | Path, num_processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes))
    return run(*launcher, "--master_port", str(free_port()), script, *arguments)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def metrics(run_dir: Path, kind: str) -> list[dict[str, float]]:
    """The rows of one kind of a run's metrics.jsonl."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["kind"] == kind]
