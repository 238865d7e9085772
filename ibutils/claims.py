"""Registered claims and their verdicts: read from `claims.yml`, decided by their rule, recorded in the notebook."""

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from scipy.stats import bootstrap, wilcoxon

MIME = "application/vnd.ibutils.claim+json"
MARKS = {"supported": "\N{CHECK MARK}", "refuted": "\N{BALLOT X}", "inconclusive": "?"}
_CONDITION = re.compile(r"(low|high)\((\w+)\) *(>=|<=|>|<) *(-?[0-9.]+(?:e-?[0-9]+)?)")


def interval(values, confidence: float = 0.95) -> tuple[float, float, float]:
    """(median, low, high) of values [runs]: the median with its BCa bootstrap interval (Efron 1987).

    Seeded, 9,999 resamples, by scipy.stats.bootstrap. Where every jackknife value agrees, as with many ties at the
    median, BCa's acceleration is 0/0 and the percentile interval is returned, its limit without that correction.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(f"values must be one finite number for each of at least 2 runs, got {x}")
    middle = float(np.median(x))
    jackknife = [np.median(np.delete(x, i)) for i in range(len(x))]
    spread = np.ptp(x)
    if spread == 0:
        return middle, middle, middle
    method = "BCa" if np.ptp(jackknife) > 0 else "percentile"
    unit = 2.0 ** np.floor(np.log2(spread))  # BCa cubes differences; a power of 2 changes no digit
    ends = bootstrap((x / unit,), np.median, confidence_level=confidence, method=method, rng=np.random.default_rng(0))
    low, high = np.clip(np.array(ends.confidence_interval) * unit, x.min(), x.max())  # percentiles round past an end
    return middle, float(low), float(high)


def holm(samples) -> np.ndarray:
    """p-values of a family of samples [runs], each tested against 0, adjusted so that one false alarm is as rare as stated.

    Each by Wilcoxon's two-sided signed-rank test (p = 1 for a sample of zeros), and then, in increasing order, by Holm (1979):
    max over j <= i of min(1, (m - j + 1) p_(j)). Returned in the order given.
    """
    p = np.array([wilcoxon(x).pvalue if np.any(np.asarray(x)) else 1.0 for x in samples])
    order = p.argsort()
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


@dataclass(frozen=True)
class Verdict:
    """What `decide` found; shown by a notebook as one line, with the machine-readable record beside it."""

    record: dict

    @property
    def verdict(self) -> str:
        return self.record["verdict"]

    def __str__(self) -> str:
        r = self.record
        return f"{r['verdict']}: {r['id']}. {'; '.join(_reading(c, r['results']) for c in r['conditions'])}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        r = self.record
        readings = "; ".join(html.escape(_reading(c, r["results"])) for c in r["conditions"])
        page = (
            f'<div class="claim claim-{r["verdict"]}"><strong>{MARKS[r["verdict"]]} {r["verdict"]}</strong> '
            f"<code>{r['id']}</code> {html.escape(r['statement'])}<br><small>{readings}.</small></div>"
        )
        return {"text/plain": str(self), "text/html": page, MIME: r}


def decide(claim: str, **quantities) -> Verdict:
    """Apply the registered rule of `claim` to its quantities, each a tensor [runs] or a dict {setting: [runs]}.

    The rule's conditions must hold in every setting. Raises KeyError for a claim that is not registered and ValueError
    where the quantities are not the ones its rule speaks of.
    """
    entry = _registered(claim)
    rules = [parse_rule(text, claim) for text in entry["rule"]]
    needed = {quantity for _, quantity, _, _ in rules}
    if needed != quantities.keys():
        raise ValueError(f"the rule of {claim} needs {sorted(needed)}, got {sorted(quantities)}")
    results = []
    for name, settings in quantities.items():
        if isinstance(settings, dict) and not settings:
            raise ValueError(f"{name} of {claim} has no setting: nothing was run that could decide it")
        for setting, values in (settings if isinstance(settings, dict) else {"": settings}).items():
            median, low, high = interval(values)
            results.append(
                {"quantity": name, "setting": setting, "median": median, "low": low, "high": high, "runs": len(values)}
            )
    conditions = [_decide_one(rule, text, results) for rule, text in zip(rules, entry["rule"], strict=True)]
    found = {c["verdict"] for c in conditions}
    verdict = "refuted" if "refuted" in found else "inconclusive" if "inconclusive" in found else "supported"
    return Verdict({**entry, "verdict": verdict, "conditions": conditions, "results": results})


def collect(folder: str | Path = ".") -> list[dict]:
    """The records that the executed notebooks of `folder` carry, each with the `chapter` it was decided in."""
    records = {}
    for path in sorted(Path(folder).glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            for output in cell.get("outputs", []):
                record = output.get("data", {}).get(MIME)
                if record is None:
                    continue
                if record["id"] in records:
                    raise ValueError(
                        f"claim {record['id']} is decided in {records[record['id']]['chapter']} and {path.stem}"
                    )
                records[record["id"]] = {**record, "chapter": path.stem}
    return list(records.values())


def registered() -> list[dict]:
    """Every entry of `claims.yml`, which lies in the working folder or in a `book` folder above it."""
    here = Path.cwd()
    for folder in (here, *(parent / "book" for parent in (here, *here.parents))):
        if (folder / "claims.yml").exists():
            return yaml.safe_load((folder / "claims.yml").read_text())
    raise FileNotFoundError(f"no claims.yml in {here} nor in a book folder above it; run from the book's folder")


def _registered(claim: str) -> dict:
    entries = {entry["id"]: entry for entry in registered()}
    if claim not in entries:
        raise KeyError(f"{claim!r} is not registered in claims.yml; there are {sorted(entries)}")
    return entries[claim]


def parse_rule(text: str, claim: str) -> tuple[str, str, str, float]:
    """('low', 'rho', '>', 0.9) for the rule 'low(rho) > 0.9'; ValueError, naming the claim, where it is none."""
    match = _CONDITION.fullmatch(text)
    if not match:
        raise ValueError(f"the rule {text!r} of {claim} does not read 'low(quantity) >= number' or the like")
    end, quantity, sign, bound = match.groups()
    return end, quantity, sign, float(bound)


def _decide_one(rule, text: str, results: list[dict]) -> dict:
    """supported if the condition holds everywhere, refuted if some interval lies wholly on its other side."""
    end, quantity, sign, bound = rule
    upward = sign in (">", ">=")
    if upward != (end == "low"):
        raise ValueError(f"the rule {text!r} compares the wrong end: low(q) goes with > and >=, high(q) with < and <=")
    own = [r for r in results if r["quantity"] == quantity]
    worst = min(own, key=lambda r: r["low"]) if upward else max(own, key=lambda r: r["high"])
    holds = {
        ">": worst["low"] > bound,
        ">=": worst["low"] >= bound,
        "<": worst["high"] < bound,
        "<=": worst["high"] <= bound,
    }
    beyond = any(r["high"] < bound if upward else r["low"] > bound for r in own)
    verdict = "supported" if holds[sign] else "refuted" if beyond else "inconclusive"
    return {"rule": text, "verdict": verdict, "worst": results.index(worst)}


def _reading(condition: dict, results: list[dict]) -> str:
    """The rule with the interval of the setting that is hardest on it."""
    worst = results[condition["worst"]]
    count = sum(r["quantity"] == worst["quantity"] for r in results)
    where = f", worst of {count} settings: {worst['setting']}" if count > 1 else ""
    span = f"median {worst['median']:.4g} [{worst['low']:.4g}, {worst['high']:.4g}]"
    return f"{condition['rule']}: {span}, {worst['runs']} runs{where}"
