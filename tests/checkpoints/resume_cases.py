"""Run in one or two processes: trains, goes on from checkpoints, and moves state between engines.

    torchrun --nproc_per_node 2 resume_cases.py FOLDER CASE…
    python resume_cases.py FOLDER CASE…

`run:NAME:ENGINE:EXTRA` trains FOLDER/NAME to its end, with a checkpoint every 3 steps.
`again:NAME:ENGINE:EXTRA:FROM:STEP` goes on from FOLDER/FROM's checkpoint of that step, in FOLDER/NAME.
`move:NAME:ENGINE:FROM:STEP` loads that checkpoint into an engine and saves it at once as FOLDER/NAME.
"""

import gc
import sys
from pathlib import Path

from deepres.batch_sizes import batch_sizes
from deepres.checkpoints.identity import run_identity
from deepres.checkpoints.restoring import restore_engine, restore_net, restore_training
from deepres.checkpoints.resuming import read_checkpoint
from deepres.checkpoints.run_facts import RunFacts
from deepres.checkpoints.saving import commit_snapshot
from deepres.checkpoints.snapshot import take_snapshot
from deepres.config import load_config
from deepres.data import find_data
from deepres.distributed import start_process_group, stop_process_group, this_process
from deepres.engines import make_engine
from deepres.job import prepare, run_job
from deepres.models import build_resnet
from deepres.recompute import keep_all_plan
from deepres.stopping import StopRequest

ENGINES = {
    "plain": "name=plain zero_stage=0",
    "fairscale": "name=fairscale zero_stage=0",
    **{f"zero{stage}": f"name=deepspeed zero_stage={stage}" for stage in range(4)},
    "zero1_offload": "name=deepspeed zero_stage=1 offload_optimizer=true",
    "zero2_offload": "name=deepspeed zero_stage=2 offload_optimizer=true",
    "zero3_offload": "name=deepspeed zero_stage=3 offload_optimizer=true offload_parameters=true",
}
EXTRAS = {
    "none": [],
    "plan": ["recompute.segments=3"],
    "dropout": ["model.shortcut=dropout", "recompute.segments=sqrt"],
    "accumulated": ["train.micro_batch_size=2"],
    "workers0": ["data.name=image_folder", "data.image_size=8", "data.num_images=null", "data.root={root}"],
}
EXTRAS["workers2"] = [*EXTRAS["workers0"], "data.num_workers=2"]
COMMON = (
    "data.name=synthetic", "data.image_size=8", "data.num_images=40", "model.depth=11", "train.epochs=2",
    "train.max_steps=null", "train.global_batch_size=8", "train.eval_batch_size=3", "log.every=2",
    "log.plots=false", "train.save_every=3 steps", "train.keep_checkpoints=99", "recompute.segments=none",
)  # fmt: skip
CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def overrides(folder: Path, name: str, engine: str, extra: str) -> list[str]:
    settings = [f"engine.{setting}" for setting in ENGINES[engine].split()]
    extras = [setting.format(root=folder / "images") for setting in EXTRAS[extra]]
    return [*COMMON, *settings, *extras, f"train.run_dir={folder / name}"]


def checkpoint_of(folder: Path, name: str, step: str) -> Path:
    return folder / name / "checkpoints" / f"step-{int(step):08d}"


def move(folder: Path, name: str, engine_name: str, source: Path) -> None:
    config, process = load_config(CONFIG, overrides(folder, name, engine_name, "none")), this_process("cpu")
    net = build_resnet(11)
    found = read_checkpoint(source)
    restore_net(found, net)
    engine = make_engine(net, config, process, batch_sizes(config.train, process.world_size))
    restore_engine(found, engine)
    info = find_data(config.data).info
    identity = run_identity(config, batch_sizes(config.train, process.world_size), info)
    state = restore_training(found, process, identity)
    facts = RunFacts(
        identity, info.classes_sha256, found.progress.steps_per_epoch, keep_all_plan(len(net.units))
    )
    snapshot = take_snapshot(engine, facts, state, metrics_bytes=0)
    if snapshot is not None:
        commit_snapshot(snapshot, folder / name / "checkpoints", keep=1)


if __name__ == "__main__":
    gc.freeze()  # measuring memory collects garbage, and modules are none
    start_process_group(this_process("cpu"))
    base = Path(sys.argv[1])
    for case in sys.argv[2:]:
        kind, new_name, new_engine, *rest = case.split(":")
        if kind == "move":
            move(base, new_name, new_engine, checkpoint_of(base, *rest))
            continue
        settings = overrides(base, new_name, new_engine, rest[0])
        if kind == "again":
            settings += [f"train.resume={checkpoint_of(base, *rest[1:])}"]
        run_job(prepare(CONFIG, settings), StopRequest())
    stop_process_group()
