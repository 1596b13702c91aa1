"""Protocols that evaluate a trained model, one file each; ``tools/evaluate.py --protocol`` selects one."""

import dataclasses
from collections.abc import Sequence

from pipelines.parts import find_part
from vssl.config import read_overrides
from vssl.config_arguments import explain_keys
from vssl.evaluation.protocols.base import EvaluationProtocol

__all__ = ["PROTOCOLS", "build_protocol", "explain_protocols", "find_protocol"]

# The value of --protocol, which is also the name of the module, and the class in it.
PROTOCOLS = {
    "knn": "KNN",
    "linear": "Linear",
    "uncertainty": "Uncertainty",
}


def find_protocol(name: str) -> type[EvaluationProtocol]:
    """The class of one of ``PROTOCOLS`` or at ``package.module:NAME``. Raises UserError as ``find_part``."""
    import_paths = {name: f"{__name__}.{name}:{member}" for name, member in PROTOCOLS.items()}
    return find_part("--protocol", name, import_paths, EvaluationProtocol)


def build_protocol(name: str, overrides: Sequence[str] = ()) -> EvaluationProtocol:
    """A protocol with its options: the defaults, changed by ``protocol.key=value`` overrides.

    Raises:
        UserError: there is no such protocol, or as ``vssl.config.read_overrides``.
    """
    protocol = find_protocol(name)
    return protocol(read_overrides(_schema(protocol), overrides).protocol)


def explain_protocols() -> str:
    """A description of each of ``PROTOCOLS``, and its keys."""
    lines = []
    for name in PROTOCOLS:
        protocol = find_protocol(name)
        lines += [f"  {name:<12} {(protocol.__doc__ or '').splitlines()[0]}"]
        lines += [f"    {line}" for line in explain_keys(_schema(protocol))]
    return "\n".join(lines)


def _schema(protocol: type[EvaluationProtocol]) -> type:
    """A config whose only section is ``protocol``."""
    section = dataclasses.field(default_factory=protocol.Options)
    return dataclasses.make_dataclass("Keys", [("protocol", protocol.Options, section)], frozen=True)
