"""The identity of a run in its checkpoint, and the allowed differences in the run that continues it."""

from pathlib import Path
from typing import Any, NamedTuple

from pipelines.errors import UserError
from pipelines.formats.packed import Packed
from pipelines.options import may_change
from vssl.config import from_dict, options_of, to_dict, value_to_yaml
from vssl.engine.config import Config, resolve
from vssl.engine.former_keys import drop_former_keys
from vssl.loggers.jsonl import read_metrics
from vssl.models.ema import scale_tau

__all__ = ["Change", "find_changes", "identify", "logged_knn"]


class Change(NamedTuple):
    """A value that differs from the checkpoint's; plain values."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} was {value_to_yaml(self.old)}, now {value_to_yaml(self.new)}"


def identify(config: Config, packed: Packed, processes: int) -> dict[str, Any]:
    """A checkpoint's identity of its run: the resolved config, the digest of its data, the number of processes, and tau
    as it is used."""
    return {"config": to_dict(config), "data": packed.digest, "processes": processes, "tau": _tau(config)}


def _tau(config: Config) -> float | None:
    """The teacher's momentum at the start of a resolved config's run; None: its method has none."""
    tau = getattr(config.method, "tau", None)
    return None if tau is None else scale_tau(tau, config.data.batch_size)


def find_changes(saved: dict[str, Any] | None, config: Config, packed: Packed, processes: int) -> list[Change]:
    """The differences between the run of a checkpoint and the one that continues it, all of which are allowed.

    Args:
        saved: from ``identify``; None: an earlier version wrote the checkpoint, and nothing can be compared.
        config, packed, processes: of the new run, as for ``identify``.

    Raises:
        UserError: a difference is not allowed, because the continued run would be another run.
    """
    if saved is None:
        return []
    if saved["data"] != packed.digest:
        old, new = saved["config"]["data"]["dir"], config.data.dir
        data = f"data.dir was {old} (SHA-256 {saved['data'][:8]}), now {new} (SHA-256 {packed.digest[:8]})"
        raise UserError(f"{data}: that is other data; give the data of the checkpoint, or start a new run")
    changes = []
    # Resolved again: keys missing from the checkpoint were added later, and its run did what is now their default.
    before, values = to_dict(resolve(from_dict(drop_former_keys(saved["config"]), Config))), to_dict(config)
    for key, field in options_of(config):
        section, name = key.split(".")
        # Another method or optimizer, which has other keys, is named first.
        change = Change(key, before[section].get(name), values[section][name])
        if change.old == change.new:
            continue
        unset_weights = key == "model.weights" and not change.new  # only the run's start needed the file
        if not may_change(field) and not unset_weights:
            raise UserError(f"{change}: that would be another run; set it back, or start a new run in another run.dir")
        changes.append(change)
    # An earlier version did not scale tau by the batch: the schedule of such a run goes on with another one.
    tau = Change("the teacher's momentum at the start", saved.get("tau", before["method"].get("tau")), _tau(config))
    if tau.old != tau.new:
        changes.append(tau)
    if saved["processes"] != processes:
        changes.append(Change("processes", saved["processes"], processes))
    return changes


def logged_knn(run: Path, step: int) -> float | None:
    """The kNN accuracy that a run's ``metrics.jsonl`` has of ``step``; None: it has none."""
    if not (run / "metrics.jsonl").exists():
        return None
    return next((line["knn_top1"] for line in read_metrics(run) if line["step"] == step and "knn_top1" in line), None)
