"""The figures of a ``StageProfiler`` as a table to print."""

__all__ = ["summarise"]

_RESTLESS = 1.5  # fastest over slowest block above this: the machine was busy with other work


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
