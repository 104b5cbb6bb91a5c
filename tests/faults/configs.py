"""Runs configurations made from the schema, half of them broken; prints a line of JSON for each.

python configs.py FOLDER COUNT
"""

import json
import shutil
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import deepspeed  # noqa: F401  # once, before the processes are forked
import yaml
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deepres.config import Config
from tests.faults.forks import fork_main, wait

# What would take long, reach outside, or has its own tests.
LEFT_ALONE = {
    "data.root", "data.download", "data.verify", "train.output", "train.run_dir", "train.resume", "train.overwrite",
    "log.tensorboard", "train.save_in_background", "train.initial_weights",
    "recompute.segments", "engine.compile",
}  # fmt: skip
FIXED = {
    "model.depth": st.sampled_from([11, 20]),
    "data.name": st.sampled_from(["synthetic", "digits"]),
    "data.image_size": st.sampled_from([8, 16]),
    "data.num_images": st.sampled_from([16, 40]),
    "data.num_classes": st.sampled_from([None, 10]),
    "model.num_classes": st.sampled_from([None, 10]),
    "train.max_steps": st.just(1),
    "train.global_batch_size": st.sampled_from([8, 16]),
    "train.micro_batch_size": st.sampled_from([None, 4, 2]),
    "train.accumulation": st.sampled_from([None, 1, 2]),
    "train.eval_batch_size": st.sampled_from([40, 64]),
    "train.save_every": st.sampled_from([None, "1 step", "2 epochs", "30 minutes"]),
    "engine.device": st.sampled_from(["auto", "cpu"]),
}
NOISE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(["auto", "1e-4", "-1", "none", 2**70]),
)


def values(annotation, constraints=()):
    """Values of a field that its type alone admits."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        constraints = [c for a in arguments[1:] for c in (a.metadata if isinstance(a, FieldInfo) else [a])]
        return values(arguments[0], constraints)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, UnionType):
        return st.one_of(*(values(a, constraints) for a in arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3)
    if annotation is NoneType:
        return st.none()
    if annotation is bool:
        return st.booleans()
    low = max([0, *(c.ge if isinstance(c, Ge) else c.gt for c in constraints if isinstance(c, Ge | Gt))])
    high = min([5, *(c.le if isinstance(c, Le) else c.lt for c in constraints if isinstance(c, Le | Lt))])
    if annotation is int:
        return st.integers(low, high)
    if annotation is float:
        return st.floats(low, high, allow_nan=False).map(lambda x: round(x, 3))
    return st.text(max_size=6)


def fields(model, prefix=""):
    """Every setting's full name and its field."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in LEFT_ALONE:
            yield f"{prefix}{name}", field


FIELDS = dict(fields(Config))


@st.composite
def configurations(draw):
    """A configuration, and whether something was broken on purpose."""
    content = {}
    always = {"model.depth", "data.name", "train.max_steps", "train.global_batch_size"}
    chosen = always | set(draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=8)))
    for name in sorted(chosen):
        section, key = name.split(".")
        by_type = values(Annotated[FIELDS[name].annotation, *FIELDS[name].metadata, None])
        strategy = FIXED.get(name, by_type)
        content.setdefault(section, {})[key] = draw(strategy)
    content.setdefault("data", {}).setdefault(
        "num_images", 40 if content["data"]["name"] == "synthetic" else None
    )
    content.setdefault("log", {})["plots"] = False
    content["train"].setdefault("eval_batch_size", 64)  # the evaluation takes longer than the step
    content["data"].setdefault("image_size", 8)
    is_broken = draw(st.booleans())
    if is_broken:
        kind = draw(st.sampled_from(["value", "key", "section", "missing"]))
        section, key = draw(st.sampled_from(sorted(FIELDS))).split(".")
        if kind == "value":
            content.setdefault(section, {})[key] = draw(NOISE)
        elif kind == "key":
            content.setdefault(section, {})[key + draw(st.sampled_from(["s", "_", "x"]))] = draw(NOISE)
        elif kind == "section":
            content[section] = draw(NOISE)
        else:
            content.pop(draw(st.sampled_from(sorted(content))))
    return content, is_broken


def main(folder: Path, count: int) -> None:
    """Run each in a process of its own."""

    @settings(
        max_examples=count, database=None, deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(configurations())
    def try_one(made):
        content, is_broken = made
        config, run_dir, output = folder / "config.yaml", folder / "run", folder / "output.txt"
        config.write_text(yaml.safe_dump(content), encoding="utf-8")
        (status,) = wait([fork_main(["--config", str(config), f"train.run_dir={run_dir}"], output, {})], 60)
        text = output.read_text(encoding="utf-8", errors="replace")
        rows = (run_dir / "metrics.jsonl").read_text(encoding="utf-8") if run_dir.exists() else ""
        outcome = {
            "broken": is_broken,
            "status": status,
            "stepped": '"summary", "step": 1' in rows,
            "traceback": "Traceback" in text,
            "error": text[text.find("error: ") :].strip() if "error: " in text else "",
            "content": repr(content),
            "text": text[-1500:] if "Traceback" in text else "",
        }
        print(json.dumps(outcome), flush=True)
        shutil.rmtree(run_dir, ignore_errors=True)

    try_one()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
