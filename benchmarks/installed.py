"""What an installation takes on disk, package by package: `python -m benchmarks.installed --extra demo`.

Makes an environment in a temporary folder with uv, with the versions of constraints.txt; adds up the blocks of the files that each package
says it has installed; removes it. `--torch cpu` is README's line for machines without a GPU; `--torch FILE` takes a wheel of torch instead,
where the package index that has torch without CUDA is out of reach. No bytecode is in the figures: Python adds it as modules are imported,
or uv with `--compile-bytecode`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own are
CUDA = ("torch", "nvidia-", "cuda-", "triton")


def installed(folder: Path) -> dict[str, int]:
    """The packages of an environment, largest first, and the bytes of each on disk."""
    [site] = folder.glob("lib/python*/site-packages")
    sizes = dict[str, int]()
    for package in distributions(path=[str(site)]):
        files = (Path(str(package.locate_file(file))) for file in package.files or ())
        sizes[package.name] = sum(BLOCK_BYTES * file.stat().st_blocks for file in files if file.is_file())
    return dict(sorted(sizes.items(), key=lambda one: -one[1]))


def make(folder: Path, extras: list[str], torch: str) -> None:
    """An environment with this checkout in it, as a wheel."""
    wanted = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    _uv("venv", "--python", sys.executable, str(folder))
    into = ["pip", "install", "--python", str(folder)]
    if not torch.endswith(".whl"):
        _uv(*into, *constraints, *(["--torch-backend", torch] if torch else []), wanted)
        return
    named = [part for extra in extras for part in ("--extra", extra)]
    lines = _uv("pip", "compile", "--no-header", "--no-annotate", *constraints, *named, str(ROOT / "pyproject.toml")).splitlines()
    others = [line for line in lines if line.startswith("torchvision") or not line.startswith(CUDA)]
    _uv(*into, "--no-deps", torch, str(ROOT), *others)


def _uv(*words: str) -> str:
    return subprocess.run(["uv", "--quiet", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml; repeatable")
    parser.add_argument("--torch", default="", help="cpu, or a wheel; by itself PyPI's, with CUDA")
    parser.add_argument("--least-mb", type=float, default=10, help="packages below are added up in one line")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.extra, options.torch)
        sizes = installed(Path(folder))
        on_disk = 1024 * int(subprocess.run(["du", "-sk", folder], check=True, capture_output=True, text=True).stdout.split()[0])
    small = {name: size for name, size in sizes.items() if size < 1e6 * options.least_mb}
    for name, size in sizes.items():
        if name not in small:
            print(f"{size / 1e6:8.1f} MB  {name}")
    print(f"{sum(small.values()) / 1e6:8.1f} MB  {len(small)} others\n{on_disk / 1e6:8.1f} MB  in all, as du says")
    if options.json:
        options.json.write_text(json.dumps({"bytes": on_disk, "packages": sizes}, indent=2))


if __name__ == "__main__":
    main()
