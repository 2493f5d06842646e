"""Put films of a finished demo side by side: `python examples/demo/gif.py --output=docs/images/demo.gif`."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import av
import numpy as np
from PIL import Image

from results import read_results

EVERY = 3  # of 80 frames a second
N_FILMS = 2  # of each task


def frames_of(path: Path) -> list[np.ndarray]:
    """Every third frame (h, w, 3) of a film."""
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24") for f in itertools.islice(container.decode(video=0), 0, None, EVERY)]


def write_gif(films: list[list[np.ndarray]], output: Path) -> None:
    """Films in a row, each waiting on its last frame for the longest, half a second more at the end."""
    n_frames = max(map(len, films))
    rows = [np.concatenate([film[min(i, len(film) - 1)] for film in films], axis=1) for i in range(n_frames)]
    pictures = [Image.fromarray(row).quantize(96) for row in rows]
    durations = [60] * (n_frames - 1) + [560]
    pictures[0].save(output, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--output", type=Path, default=Path("docs/images/demo.gif"))
    given = parser.parse_args()
    paths = [path for result in read_results(given.folder / "eval") for path in result.videos[:N_FILMS]]
    write_gif([frames_of(path) for path in paths], given.output)
    print(f"wrote {given.output} ({given.output.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
