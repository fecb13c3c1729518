"""Whether torch can use the NVIDIA GPU of this node, as the last setup command of cluster.yaml:
`python -m ray_app.cluster.gpu_check`.

Says nothing and exits with 0 where torch can, or where the node has no such GPU. Otherwise it exits
with 1, after one line that names the reason and the fix: without it such a node would join the
cluster, take every GPU task, and fail each.
"""

import re
import sys
import warnings
from pathlib import Path

from ray_app.errors import ConfigError

PCI = Path("/sys/bus/pci/devices")
DRIVER = Path("/proc/driver/nvidia/version")
DEVICE = Path("/dev/nvidiactl")
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # of a device's vendor, and of its class
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
_LEAST_DRIVER = {"12": 525, "13": 580}
_IMAGE = "name another ImageId in cluster.yaml (docs/cluster.md)"


def torch_and_gpus() -> tuple[str, str]:
    """In words: which torch this is, and the GPUs that it can use ("" for none). Raises what
    importing torch raises where it is damaged.
    """
    import torch

    from ray_app.detectors.precision import has_bf16

    built = f"torch {torch.__version__} for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'processors alone'}"
    if not torch.cuda.is_available():
        return built, ""
    one, precision = torch.cuda.get_device_properties(0), "bf16" if has_bf16("cuda") else "fp32"
    return (
        built,
        f"{torch.cuda.device_count()} × {one.name}, {one.total_memory / 1e9:.0f} GB, {precision}, driver {_version_of(DRIVER)}",
    )


def require_gpus(planned: int) -> None:
    """A cluster's GPUs are not planned for on one machine that has none, which would start all
    their decoders. Raises ConfigError.
    """
    import ray
    import torch

    if not ray.is_initialized() and not torch.cuda.device_count():
        raise ConfigError(
            f"the config plans for {planned} GPUs, and this machine has none",
            hint="on this machine: --set cluster.gpus=null --set cluster.cpus=null; on a cluster: --set cluster.address=HOST:6379",
        )


def gpu_problem(pci: Path = PCI, driver: Path = DRIVER, device: Path = DEVICE) -> str | None:
    """Why torch cannot use the GPU that the bus shows, and what mends it, in one line; None where
    it can, or there is none.
    """
    if not any(_is_gpu(one) for one in pci.glob("*")):
        return None
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            return None
    return f"this node has an NVIDIA GPU that torch {torch.__version__} cannot use: {_reason(torch.version.cuda, driver, device)}"


def _reason(cuda: str | None, driver: Path, device: Path) -> str:
    if cuda is None:
        return "it was built without CUDA; install it from PyPI: pip install --constraint constraints.txt --force-reinstall torch"
    if not driver.exists():
        return f"no NVIDIA driver is loaded; {_IMAGE}, one that has a driver"
    found, least = _version_of(driver), _LEAST_DRIVER.get(cuda.partition(".")[0])
    if found and least and int(found.partition(".")[0]) < least:
        return f"its CUDA {cuda} needs driver {least} or later, and the driver is {found}; {_IMAGE}, one with a newer driver"
    if not device.exists():
        return "the container was started without it; the host needs the NVIDIA container toolkit (`docker info` lists a runtime nvidia)"
    return "`nvidia-smi` on the host may say why"


def _version_of(driver: Path) -> str | None:
    found = re.search(r"\s(\d+\.[\d.]+)\s", driver.read_text()) if driver.exists() else None
    return found and found[1]


def _is_gpu(device: Path) -> bool:
    try:
        return (device / "vendor").read_text().strip() == _NVIDIA and (
            device / "class"
        ).read_text().startswith(_DISPLAY)
    except OSError:
        return False


if __name__ == "__main__":
    problem = gpu_problem()
    if problem is not None:
        print(problem, file=sys.stderr)
        sys.exit(1)
