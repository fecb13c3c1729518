"""Check whether torch can use the NVIDIA GPU of this node.

`python -m ray_app.cluster.gpu_check` is the last setup command of cluster.yaml. It prints nothing and
exits with 0 if torch can use the GPU, or if the node has no NVIDIA GPU. Otherwise it prints one line
with the reason and the fix, and exits with 1. Without this check, a node with an unusable GPU would
join the cluster, take GPU tasks, and fail every one of them.
"""

import re
import sys
import warnings
from pathlib import Path

from ray_app.errors import ConfigError

PCI = Path("/sys/bus/pci/devices")
DRIVER = Path("/proc/driver/nvidia/version")
DEVICE = Path("/dev/nvidiactl")
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # The vendor, and the start of the class, of a PCI device.
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
_MIN_DRIVER = {"12": 525, "13": 580}
_IMAGE = "name another ImageId in cluster.yaml (docs/cluster.md)"


def torch_and_gpus() -> tuple[str, str]:
    """Describe the installed torch, and the GPUs that torch can use, for `touchstone doctor`.

    If torch is damaged, the exception of its import is raised.

    Returns:
        The text on torch, such as its version, and the text on the GPUs, such as their number and
        name. The second text is "" if torch can use no GPU.
    """
    import torch

    from ray_app.detectors.precision import has_bf16

    build = f"torch {torch.__version__} for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPUs only'}"
    if not torch.cuda.is_available():
        return build, ""
    gpu, precision = torch.cuda.get_device_properties(0), "bf16" if has_bf16("cuda") else "fp32"
    return (
        build,
        f"{torch.cuda.device_count()} × {gpu.name}, {gpu.total_memory / 1e9:.0f} GB, {precision}, driver {_read_version(DRIVER)}",
    )


def require_gpus(planned: int) -> None:
    """Check that this machine has a GPU, for a config that plans to use GPUs.

    A config for a cluster may be used on a single machine by mistake. Without this check, a machine
    without a GPU would start as many processes that decode images as the planned GPUs need. The
    check passes if this process is connected to Ray, because other nodes may have the GPUs.

    Args:
        planned: The number of GPUs in the config, for the message.

    Raises:
        ConfigError: This machine has no GPU, and the process is not connected to Ray.
    """
    import ray
    import torch

    if not ray.is_initialized() and not torch.cuda.device_count():
        raise ConfigError(
            f"the config plans for {planned} GPUs, but this machine has none",
            hint="run it on a cluster with --set cluster.address=HOST:6379, or on this machine with --set cluster.gpus=null --set cluster.cpus=null",
        )


def gpu_problem(pci: Path = PCI, driver: Path = DRIVER, device: Path = DEVICE) -> str | None:
    """Return one line with the reason why torch cannot use the GPU of this node, and with the fix.

    Args:
        pci: The folder in which Linux lists the PCI devices.
        driver: The file that exists if an NVIDIA driver is loaded, and has its version.
        device: The device file by which programs use NVIDIA GPUs.

    Returns:
        The line. None if torch can use the GPU, or if there is no NVIDIA GPU.
    """
    if not any(_is_gpu(entry) for entry in pci.glob("*")):
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
    driver_version, min_version = _read_version(driver), _MIN_DRIVER.get(cuda.partition(".")[0])
    if driver_version and min_version and int(driver_version.partition(".")[0]) < min_version:
        return f"its CUDA {cuda} needs driver {min_version} or later, and the driver is {driver_version}; {_IMAGE}, one with a newer driver"
    if not device.exists():
        return "the container was started without it; the host needs the NVIDIA container toolkit (`docker info` lists a runtime nvidia)"
    return "`nvidia-smi` on the host may say why"


def _read_version(driver: Path) -> str | None:
    match = re.search(r"\s(\d+\.[\d.]+)\s", driver.read_text()) if driver.exists() else None
    return match and match[1]


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
