"""What `auto` means where no threshold binds: the fastest that keeps the verdicts; ADR 13."""

from dataclasses import replace
from typing import Final

from engine.backends.base import BackendChoice, PrecisionChoice, Runtime, cpu_backends
from engine.bundle import Bundle, Precision
from engine.parity import Parity, bundle_parity

_FASTEST: Final[tuple[Precision, ...]] = ("int8", "fp32")


def fastest(
    bundle: Bundle, *, backend: BackendChoice = "auto", precision: PrecisionChoice = "auto"
) -> Runtime:
    """The fastest way to run `bundle` on this machine's CPU that is known to keep the verdicts.

    int8 comes before fp32, and of the runtimes that are installed the fastest comes first. In int8
    a runtime is taken only if the bundle's gate judged that very runtime and had no objection. What
    is named instead of `auto` is taken as it is.
    """
    found = [
        Runtime(backend=each, precision=wanted)
        for wanted in (_FASTEST if precision == "auto" else (precision,))
        for each in (cpu_backends(wanted) if backend == "auto" else (backend,))
    ]
    return next((each for each in found if _is_proven(bundle, each)), found[0])


def judgement(bundle: Bundle, runtime: Runtime) -> Parity | None:
    """How the bundle's gate judged `runtime`; `None` where it did not.

    In fp32 ONNX Runtime stands for every runtime: on CPUs they agree to a hundred-thousandth.
    """
    judged = replace(runtime, backend="onnxruntime") if runtime.precision == "fp32" else runtime
    return bundle_parity(bundle).get(judged.cpu_name)


def _is_proven(bundle: Bundle, runtime: Runtime) -> bool:
    if runtime.precision == "fp32":
        return True
    found = judgement(bundle, runtime)
    return found is not None and not found.objections
