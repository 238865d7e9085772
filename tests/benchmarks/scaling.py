"""The data of the page Scaling out: `python tests/benchmarks/scaling.py SWEEP` writes book/scaling.json.

SWEEP is the folder of the sweep that the page names. First the time of a sweep of `--short` small points on one worker and on
two is measured, in turn, `--rounds` times: many minutes each, on an otherwise idle machine. 0 keeps the rounds of the file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
SMALL = "-p runs 2 -p n 4 -p d 12 -p patience 0.1"


def rows(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / "points").glob("*.json"))]


def timed(workers, points):
    """Wall seconds of the whole command, and the sum over points of theirs."""
    with tempfile.TemporaryDirectory() as out:
        grid = ["-p", "seed", f"0:{points}", *SMALL.split()]
        command = [sys.executable, "-m", "ibutils.sweeps", "book/06_atlas.ipynb", *grid, "--out", out]
        start = time.perf_counter()
        subprocess.run([*command, "--workers", str(workers)], cwd=ROOT, check=True)
        return {"wall": time.perf_counter() - start, "points": [row["seconds"] for row in rows(Path(out))]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", type=int, default=48)
    args = parser.parse_args()
    target = ROOT / "book" / "scaling.json"
    found = json.loads(target.read_text()) if target.is_file() else {"rounds": []}
    if args.rounds:
        found["rounds"] = []
        for number in range(args.rounds):
            turn = [("start", 1, 1), ("one", 1, args.short), ("two", 2, args.short)]
            times = {name: timed(*sizes) for name, *sizes in (turn if number % 2 == 0 else reversed(turn))}
            found["rounds"].append(times)
    table = pd.read_parquet(args.sweep / "table.parquet").set_index(["depths", "seed"])
    points = []
    for row in rows(args.sweep):
        given = row["parameters"]
        line = table.loc[(json.dumps(given["depths"]), given["seed"])]
        read = {
            name.removeprefix("depth-adam difference "): line[name] for name in table if name.startswith("depth-adam d")
        }
        points.append(
            {"layers": given["depths"][-1], "seed": given["seed"], "runs": given["runs"], "seconds": row["seconds"]}
            | {"verdict": line["depth-adam"]}
            | {name: round(float(value), 5) for name, value in read.items()}
        )
    found["points"] = sorted(points, key=lambda point: (point["layers"], point["seed"]))
    target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
