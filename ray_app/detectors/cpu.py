"""Select bf16 or fp32 for networks on a CPU if the user requests the precision `auto`.

Start at `cpu_precision`. The module does not import torch, which takes seconds.
"""

import os
from functools import cache
from pathlib import Path
from typing import Literal

from ray_app.errors import ConfigError

CPU_PRECISION_VARIABLE = "TOUCHSTONE_CPU_PRECISION"

# The kernel's names for instructions that multiply bf16 matrices: AVX-512 and AMX on x86, NEON and
# SVE on Arm.
_MULTIPLY_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
_CPUINFO = Path("/proc/cpuinfo")


def cpu_precision() -> Literal["bf16", "fp32"]:
    """Return the precision that `auto` means on this CPU.

    It is bf16 if the CPU has instructions that multiply bf16 matrices, which are faster than fp32,
    and fp32 otherwise. Set $TOUCHSTONE_CPU_PRECISION to bf16 or fp32 to override it, for example to
    get equal scores on different machines. Raises ConfigError if the variable has another value.
    """
    match os.environ.get(CPU_PRECISION_VARIABLE, ""):
        case "bf16" | "fp32" as precision:
            return precision
        case "":
            return "bf16" if _multiplies_bf16() else "fp32"
        case other:
            raise ConfigError(
                f"{CPU_PRECISION_VARIABLE} must be bf16 or fp32, got {other!r}",
                hint="set it to bf16 or fp32, or unset it",
            )


@cache
def _multiplies_bf16() -> bool:
    try:
        return not _MULTIPLY_BF16.isdisjoint(_CPUINFO.read_text().split())
    except OSError:  # Not on Linux.
        return False
