"""Which stage limits a run, and the config key that would help."""

import os

from vssl.engine.config import Config

__all__ = ["advise", "name_bottleneck"]


def name_bottleneck(times: dict[str, float]) -> str:
    """The stage that limits a run, from the time per batch that each stage takes alone.

    Loading runs in parallel with the step: the slower of the two is the bottleneck. Within loading it is decoding or
    copying if that takes more than half of the time; within the step, augmentation if it takes longer than the network.

    Args:
        times: load, step, augment, network; decode and copy if these stages exist. In any unit.
    """
    if times["step"] >= times["load"]:
        return "augment" if times["augment"] > times["network"] else "step"
    slowest = max(("decode", "copy"), key=lambda name: times.get(name, 0.0))
    return slowest if times.get(slowest, 0.0) > times["load"] / 2 else "load"


def advise(
    bottleneck: str, config: Config, format: str, device: str, workers: int, augment_costs: dict[str, float]
) -> str:
    """One sentence: the bottleneck, and the config key that would reduce it.

    Args:
        format: of the packed data set.
        device: "cpu" or "cuda".
        workers: number of decoding threads.
        augment_costs: share of the augmentation's time by config key; needed if the bottleneck is "augment".
    """
    cores = len(os.sched_getaffinity(0))
    if bottleneck in ("decode", "load") and workers < cores:
        remedy = f"raise data.workers, which uses {workers} of {cores} cores"
    elif bottleneck == "decode":
        remedy = "point data.dir at smaller files (tools/convert.py --max-resolution)"
    elif bottleneck == "load" and format != "resident":
        remedy = "point data.dir at a data set packed with --format resident, if it fits in the device's memory"
    elif bottleneck == "load":
        remedy = "choose another data.loader"
    elif bottleneck == "copy":
        remedy = f"lower data.canvas={config.data.canvas}: fewer pixels are copied"
    elif bottleneck == "augment":
        key = max(augment_costs, key=augment_costs.__getitem__)
        remedy = f"change {key}, which takes {augment_costs[key]:.0%} of it"
    elif device == "cpu":
        remedy = f"train.device=cuda, or a smaller model.backbone than {config.model.backbone}"
    elif config.train.compile is False:
        remedy = "train.compile=true"
    elif config.train.amp == "off":
        remedy = "train.amp=auto"
    else:
        remedy = f"less arithmetic, by another model.backbone than {config.model.backbone} or a smaller data.image_size"
    return f"The bottleneck is {bottleneck}; to reduce it: {remedy}."
