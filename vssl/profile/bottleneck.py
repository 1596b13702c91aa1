"""From the figures of tools/throughput.py to the bottleneck, advice, and a table."""

import os

from vssl.engine.config import Config

__all__ = ["advise", "name_bottleneck", "summarise"]

_RESTLESS = 1.5  # fastest over slowest block above this: the machine was busy with other work


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


def summarise(report: dict) -> str:
    """A table of the stages, the parts of the step, and the advice."""
    lines = [
        f"{'stage':<11} {'images/s':>10} {'low - high':>20} {'ms per batch':>12} {'cores':>6} {'of the floor':>12}"
    ]
    for name, stage in report["stages"].items():
        spread = f"{stage['low']:,.0f} - {stage['high']:,.0f}"
        share = f"{stage['floor_fraction']:.1%}" if "floor_fraction" in stage else ""
        lines.append(
            f"{name:<11} {stage['images_per_second']:>10,.0f} {spread:>20} {stage['milliseconds']:>12.2f} "
            f"{stage['cpu_cores']:>6.1f} {share:>12}"
        )
    split, peak = report["step_milliseconds"], report["hardware"]["matrix_flops"]
    lines += [
        "step: " + ", ".join(f"{name} {value:.2f}" for name, value in split.items()) + " ms",
        "floors: " + ", ".join(f"{name} {value:,.0f}" for name, value in report["floors"].items()) + " images/s",
        f"{report['flops_per_image'] / 1e9:.3g} GFLOP per image; the step does {report['model_flop_utilisation']:.1%} "
        f"of the matrix product's {peak / 1e12:,.3g} TFLOP/s",
        "memory: " + ", ".join(f"{name[:-6]} {value / 2**30:.2f} GiB" for name, value in report["memory"].items()),
        f"end to end: {report['floor_fraction']:.1%} of the slowest floor, {report['ceiling_fraction']:.1%} of the "
        "step on cached batches",
    ]
    if "processes" in report:
        lines.append(_describe_exchange(report["processes"]))
    restless = [name for name, stage in report["stages"].items() if stage["high"] > _RESTLESS * stage["low"]]
    if restless:
        lines.append(f"the blocks of {', '.join(restless)} differ much: this machine is probably busy with other work")
    return "\n".join([*lines, report["advice"]])


def _describe_exchange(figures: dict) -> str:
    def megabytes(name: str) -> str:
        return f"{figures[name] / 1e6:.2f} MB"

    return (
        f"{figures['count']} process{'es' if figures['count'] > 1 else ''}: "
        f"network {figures['network_milliseconds']:.2f} ms, "
        f"without exchange {figures['network_alone_milliseconds']:.2f}; "
        f"each sends {megabytes('gradient_bytes')} of gradients and "
        f"{megabytes('statistics_bytes')} of statistics ({figures['statistics_exchanges']} exchanges); an all-reduce "
        f"of {megabytes('all_reduce_bytes')} alone takes {figures['all_reduce_milliseconds']:.2f} ms"
    )
