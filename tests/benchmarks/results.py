"""Contenders timed in turn, and the table of what was found, book/cost.json."""

import hashlib
import json
import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch

FILE = Path(__file__).parents[2] / "book" / "cost.json"
KEY = ("benchmark", "case", "device")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def core(work) -> float:
    """Seconds of processor time, all threads, of one call: other processes on the machine do not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def wall(work) -> float:
    """Seconds by the clock, the GPU's queue included."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(benchmark, works: dict, rounds: int = 7, warmup: int = 1, seconds=core) -> dict[str, list[float]]:
    """Seconds of each work in each round, A B C A B C ...: what slows the machine for a while slows all contenders."""
    found = {name: [] for name in works}

    def one_round():
        for name, work in works.items():
            found[name].append(seconds(work))

    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=warmup)
    return {name: values[-rounds:] for name, values in found.items()}


def steps_in_turn(benchmark, contenders: dict, rounds: int = 7, least: float = 0.2, device: str = "cpu"):
    """Seconds a step of each contender's `advance(steps)`, by round; whole tens of steps that take about `least` seconds."""
    steps, seconds = {}, core if device == "cpu" else wall
    for name, contender in contenders.items():
        contender.advance(10)  # compiled, allocated
        steps[name] = 10 * max(1, round(least / seconds(lambda c=contender: c.advance(10))))
    works = {name: lambda c=c, k=steps[name]: c.advance(k) for name, c in contenders.items()}
    found = in_turn(benchmark, works, rounds, seconds=seconds)
    return {name: [s / steps[name] for s in values] for name, values in found.items()}


def ratios(a: list[float], b: list[float]) -> list[float]:
    """a / b round by round."""
    return [x / y for x, y in zip(a, b, strict=True)]


class Table:
    """Rows of benchmark, case, contender, quantity: its median, smallest and largest value over rounds."""

    def __init__(self):
        self.rows = []

    def add(self, benchmark: str, case: str, contender: str, device: str = "cpu", **quantities) -> None:
        for quantity, values in quantities.items():
            low, middle, high = (float(f"{f(values):.5g}") for f in (min, median, max))
            key = {"benchmark": benchmark, "case": case, "contender": contender, "device": device}
            spread = {"median": middle, "low": low, "high": high, "rounds": len(values)}
            self.rows.append({**key, "quantity": quantity, **spread})

    def write(self, file: Path = FILE) -> None:
        """Replace the cases that were measured, keep the others with the description of the machine that made them."""
        known = json.loads(file.read_text()) if file.is_file() else {"machines": {}, "rows": []}
        new = {tuple(row[key] for key in KEY) for row in self.rows}
        rows = [row for row in known["rows"] if tuple(row[key] for key in KEY) not in new]
        for row in self.rows:
            here = machine(row["device"])
            name = hashlib.sha256(json.dumps(here).encode()).hexdigest()[:8]
            known["machines"][name] = here
            rows.append({**row, "machine": name})
        used = {row["machine"] for row in rows}
        machines = {name: about for name, about in known["machines"].items() if name in used}
        lines = ",\n".join(json.dumps(row) for row in sorted(rows, key=lambda row: row["benchmark"]))
        file.write_text(f'{{"machines": {json.dumps(machines, indent=1)},\n"rows": [\n{lines}\n]}}\n')


def machine(device: str) -> dict:
    """What a reader must know of the machine; nothing that names it."""
    blas = "MKL" if torch.backends.mkl.is_available() else "OpenBLAS or other"
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "BLAS": blas,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "Python": platform.python_version(),
        **{package: installed(package) for package in ("torch", "jax", "scikit-learn", "clarabel")},
    }


def cpu() -> str:
    """The model's name, as Linux gives it, or the architecture."""
    listed = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", listed.read_text(), re.MULTILINE) if listed.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
