"""How a part says what it measured: one JSON line a figure, written at once."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """What a part is told: device, "real" or "tiny" sizes, the file of figures, a folder to work in, seconds left."""

    device: str
    size: str
    record: Path
    folder: Path
    seconds: float

    @property
    def is_real(self) -> bool:
        return self.size == "real"

    def figure(self, name: str, values, unit: str = "", *, most=None, least=None, equals=None, **more) -> None:
        """Note a figure.

        Args:
            name: What was measured.
            values: One value, or one per repeat; the median counts.
            unit: Of the values.
            most: The figure to reach is at most this.
            least: Or at least this.
            equals: Or exactly this.
            more: What else the record should say.
        """
        values = list(values) if isinstance(values, list | tuple) else [values]
        line = {"part": more.pop("part", ""), "name": name, "unit": unit, "n": len(values)}
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            middle = statistics.median(values)
            line |= {"median": middle, "min": min(values), "max": max(values)}
        else:
            middle = values[0]
            line |= {"value": middle}
        for word, bound, met in (
            ("<=", most, lambda: middle <= most),
            (">=", least, lambda: middle >= least),
            ("=", equals, lambda: middle == equals),
        ):
            if bound is not None:
                line |= {"target": f"{word} {bound}", "met": bool(met())}
        line |= more
        with self.record.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(format_figure(line), flush=True)


def format_figure(line: dict) -> str:
    """One row of the table."""

    def show(value) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    value = show(line["median"] if "median" in line else line["value"])
    spread = f" [{show(line['min'])}, {show(line['max'])}] n={line['n']}" if line["n"] > 1 else ""
    target = f"  ({line['target']}: {'met' if line['met'] else 'NOT MET'})" if "target" in line else ""
    return f"{line['name']:<72} {value}{' ' + line['unit'] if line['unit'] else ''}{spread}{target}"
