"""Who is told what of a fit (`hpsearch/results/diagnosis.py`), over the curves recorded below `benchmarks/curves`.

    python benchmarks/diagnosis.py

Of each table and finding: how many trials, where they rank in their table (0 the best, 1 the last), and the medians of
their learning rate multipliers and epochs, beside those of the best tenth. A finding is worth something if its trials
rank low and what it advises leads towards the best ones.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from statistics import fmean, median
from typing import Any

from hpsearch.results import Report, Trial, TrialState
from hpsearch.results.diagnosis import Finding, diagnose
from hpsearch.spec.objective import ObjectiveSpec

CURVES = Path(__file__).parent / "curves"


def as_trial(row: dict[str, Any], examples: int) -> Trial:
    """A recorded row as a trial that came to its end."""
    reports = tuple(
        Report(exposure, exposure / examples, loss, 0.0, 0.0, training_loss=training)
        for exposure, _, loss, training in row["curve"]
    )
    value = min(report.validation_loss for report in reports[1:])
    return Trial(row["row"], TrialState.COMPLETE, row["params"], value, reports)


def ranked(path: Path) -> list[Trial]:
    """The trials of a table that did not diverge, best first."""
    table = json.loads(gzip.decompress(path.read_bytes()))
    trials = [as_trial(row, table["examples"]) for row in table["rows"] if row["failure"] is None]
    return sorted(trials, key=lambda trial: trial.value or 0.0)


def main() -> None:
    """Print the table."""
    print("| table | finding | trials | rank, mean | learning rate multiplier | epochs |")
    print("|---|---|---|---|---|---|")
    for path in sorted(CURVES.glob("*.json.gz")):
        trials = ranked(path)
        found = [diagnose(trial, ObjectiveSpec()) for trial in trials]
        kinds: dict[str, list[int]] = {"(the best tenth)": list(range(len(trials) // 10))}
        for finding in (*Finding, None):
            kinds[finding or "none"] = [
                place for place, one in enumerate(found) if (one.finding if one else None) == finding
            ]
        for kind, places in kinds.items():
            if places:
                params = [trials[place].params for place in places]
                rank = fmean(places) / len(trials)
                rate, epochs = (
                    median(float(each[name]) for each in params) for name in ("learning_rate_multiplier", "epochs")
                )
                name = path.name.removesuffix(".json.gz")
                print(f"| {name} | {kind} | {len(places)} | {rank:.2f} | {rate:.2g} | {epochs:g} |")


if __name__ == "__main__":
    main()
