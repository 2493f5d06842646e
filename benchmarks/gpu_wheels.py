"""Carry what a GPU machine without a network lacks: wheels, in parts of limited size.

Here, where there is a network and an installed environment:

    python benchmarks/gpu_wheels.py build/wheels --have=freeze.txt

writes build/wheels/1, build/wheels/2, ... of at most --part_mib each: this package's own wheel and those of all that it
and its extras need, in the versions installed here, without what --have (a `pip freeze` of that machine) names. There,
with any of the parts, and again with each that comes later:

    python benchmarks/gpu_wheels.py build/wheels --install=/tmp/site && export PYTHONPATH=$PWD:/tmp/site

A wheel larger than a part travels in pieces and is joined when the last has come.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

OURS = "lerobot_policy_world_modality"
EXTRAS = ("embedded", "smolvla", "qwen")
ALSO = ("pytest", "pytest-xdist", "psutil")
# Gigabytes that a machine with a GPU has anyway; and what LeRobot needs only where it is asked for.
LEFT_OUT = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*|setuptools|pip|cmake|wandb|torchcodec")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(have: set[str]) -> dict[str, str]:
    """Distributions that this package and its extras need, with the versions installed here."""
    found: dict[str, str] = {}
    todo = [(OURS, EXTRAS)] + [(name, ()) for name in ALSO]
    seen = set()
    while todo:
        name, extras = todo.pop()
        key = canonical(name)
        if (key, extras) in seen or key in have or LEFT_OUT.fullmatch(key):
            continue
        seen.add((key, extras))
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{name} is not installed here: make env")
        if key != canonical(OURS):
            found[key] = dist.version
        for text in dist.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in (*extras, "")):
                todo.append((requirement.name, tuple(sorted(requirement.extras))))
    return found


def download(folder: Path, have: set[str]) -> list[Path]:
    """The wheels, largest first."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    versions = needed(have)
    here = Path(__file__).parents[1]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, here], check=True)
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", folder, *(f"{name}=={v}" for name, v in versions.items())],
        check=True,
    )
    return sorted(folder.glob("*.whl"), key=lambda path: -path.stat().st_size)


def pack(folder: Path, have: set[str], part_bytes: int) -> None:
    """Write the parts: first fit, the largest first."""
    if folder.exists():
        sys.exit(f"{folder} exists: remove it, or name another folder")
    loose = folder / "loose"
    loose.mkdir(parents=True)
    pieces = []
    for wheel in download(loose, have):
        size = wheel.stat().st_size
        if size <= part_bytes:
            pieces.append(wheel)
            continue
        n = -(-size // part_bytes)
        data = wheel.read_bytes()
        for i in range(n):
            piece = wheel.with_name(f"{wheel.name}.{i + 1}of{n}")
            piece.write_bytes(data[i * part_bytes : (i + 1) * part_bytes])
            pieces.append(piece)
        wheel.unlink()
    parts: list[list[Path]] = []
    for piece in sorted(pieces, key=lambda path: -path.stat().st_size):
        for part in parts:
            if sum(path.stat().st_size for path in part) + piece.stat().st_size <= part_bytes:
                part.append(piece)
                break
        else:
            parts.append([piece])
    for number, part in enumerate(parts, 1):
        (folder / str(number)).mkdir()
        for piece in part:
            piece.rename(folder / str(number) / piece.name)
    shutil.rmtree(loose)
    for number, part in enumerate(parts, 1):
        mib = sum(path.stat().st_size for path in (folder / str(number)).iterdir()) / 2**20
        print(f"{folder / str(number)}: {len(part)} files, {mib:.0f} MiB")


def install(folder: Path, target: Path) -> None:
    """Install the parts that are here; pieces wait for the rest of their wheel."""
    waiting = target / ".wheels"
    waiting.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("[0-9]*/*.whl*")):
        shutil.copy(path, waiting / path.name)
    for last in sorted(waiting.glob("*.whl.1of*")):
        name, n = re.fullmatch(r"(.*\.whl)\.1of(\d+)", last.name).groups()
        pieces = [waiting / f"{name}.{i}of{n}" for i in range(1, int(n) + 1)]
        if all(piece.exists() for piece in pieces):
            (waiting / name).write_bytes(b"".join(piece.read_bytes() for piece in pieces))
            for piece in pieces:
                piece.unlink()
    wheels = sorted(waiting.glob("*.whl"))
    if wheels:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
        subprocess.run([*pip, "--target", target, *wheels], check=True)
    for wheel in wheels:
        wheel.unlink()
    left = sorted(path.name for path in waiting.iterdir())
    print(f"{len(wheels)} wheels installed in {target}" + (f"; waiting for the rest of {left}" if left else ""))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("folder", type=Path, help="where the parts are, or go")
    cli.add_argument("--have", type=Path, help="pip freeze of the other machine: what need not travel")
    cli.add_argument("--part_mib", type=int, default=56, help="most of a part (default: 56)")
    cli.add_argument("--install", type=Path, metavar="TARGET", help="install the parts that are here into this folder")
    args = cli.parse_args()
    if args.install:
        install(args.folder, args.install)
        return
    lines = args.have.read_text().splitlines() if args.have else []
    pack(args.folder, {canonical(re.split(r"[=@ <>]", line)[0]) for line in lines if line}, args.part_mib * 2**20)


if __name__ == "__main__":
    main()
