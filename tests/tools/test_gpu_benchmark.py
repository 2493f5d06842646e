"""benchmarks/gpu.py on a CPU, at tiny sizes: it measures, records each figure, and goes on after what is done."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def gpu(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCHMARKS / "gpu.py", "--minutes=15", *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900)


def test_a_part_is_measured_recorded_and_not_measured_again(tmp_path):
    record = tmp_path / "gpu.jsonl"
    options = ("--device=cpu", "--size=tiny", "--parts", "training", f"--output={record}", "--commit=c")
    done = gpu(*options)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert lines[0]["commit"] == "c" and lines[0]["versions"]["lerobot"]
    figures = {line["name"]: line for line in lines[1:]}
    ratio = figures["world_F over world_A: training step"]
    assert ratio["target"] == "<= 1.15" and ratio["n"] == 2 and ratio["min"] <= ratio["median"] <= ratio["max"]
    assert ratio["met"] == (ratio["median"] <= 1.15)
    assert "world_F over world_A: training step" in done.stdout
    assert "training: done before" in gpu(*options).stdout
    assert "figures of another commit" in gpu(*options[:-1], "--commit=d").stderr


def test_a_machine_without_cuda_is_told_how_to_try_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = gpu(f"--output={tmp_path / 'gpu.jsonl'}")
    assert done.returncode == 1 and "--device=cpu --size=tiny" in done.stderr
    assert not (tmp_path / "gpu.jsonl").exists()
