"""What `hpsearch check` says: of a spec, from the service; of a data file, without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpsearch.cli.show import limits_of
from hpsearch.errors import HpsearchError, InvalidDataset
from hpsearch.spec.data import SplitRole

DATA_SUFFIXES = {".jsonl", ".ndjson"}


def check_file(path: Path, role: SplitRole) -> dict[str, Any]:
    """The lint report of a data file on this machine.

    Raises:
        UnknownDataset: It can't be read.
        HpsearchError: This is the plain client, which can't compare texts.
    """
    try:
        from hpsearch.dataset.lint import lint

        return lint(path, role=role).as_json()
    except ImportError as error:
        raise HpsearchError(f"checking data needs {error.name}: pip install 'hpsearch[api]'") from None


def told_of_file(report: dict[str, Any]) -> Iterator[str]:
    """A lint report, line by line: what must be mended comes last, where a person looks."""
    from hpsearch.dataset.lines import together

    form = f", format {report['format']}" if report["format"] else ""
    yield f"{report['examples']:,} usable examples{form}"
    yield f"text: {report['prompt_bytes']:,} bytes of prompts, {report['completion_bytes']:,} of completions"
    yield from (f"warning: {warning}" for warning in report["warnings"])
    yield from (f"fault: {fault}" for fault in together((each["line"], each["text"]) for each in report["faults"]))


def refuse_faults(path: Path, report: dict[str, Any]) -> None:
    """Raise InvalidDataset when there is something that must be mended."""
    from hpsearch.dataset.formats import MOST_FAULTS

    faults = report["faults"]
    if faults:
        at_least = "at least " if len(faults) == MOST_FAULTS else ""  # then later lines were not read
        count = f"{at_least}{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise InvalidDataset(f"{path}: {count} to mend", line=int(faults[0]["line"]))


def told_of_spec(found: dict[str, Any]) -> Iterator[str]:
    """What the service says of a spec, line by line."""
    model, examples = found["model"], found["examples"]
    yield f"model: {model['type']}, {model['parameters']:,} parameters, {model['layers']} layers"
    test = f" and {examples['test']} sealed test" if "test" in examples else ""
    between = "," if test else " and"
    yield f"data: {examples['train']} training{between} {examples['validation']} validation{test} examples"
    yield from (f"warning: {warning}" for warning in found["warnings"])
    yield "auto: " + ", ".join(f"{key} {value}" for key, value in found["defaults"].items())
    for part, chosen in found["search"].items():
        asked = found["spec"][part]["type"]
        settings = ", ".join(f"{key} {value}" for key, value in chosen.items() if key != "type")
        yield f"{part}: {chosen['type']}{' (auto)' if asked == 'auto' else ''}{f', {settings}' if settings else ''}"
    yield f"base learning rate: {model['base_learning_rate']:.3g} (the multiplier multiplies it)"
    yield f"budget: {limits_of(found['spec']['budget'])}"
    yield from _told_of_cost(found["cost"])
    yield "the spec is valid"


def _told_of_cost(cost: dict[str, Any]) -> Iterator[str]:
    parts = {
        "epoch": "an epoch",
        "defaults": "the trial of the defaults",
        "search": "the search at most",
        "confirmation": "to confirm the best at most",
    }
    told = [f"{cost[part]:,} {words}" for part, words in parts.items() if cost[part]]
    if told:
        yield f"training tokens, about: {', '.join(told)}"
    if cost["device_hours"] is not None:
        rate = cost["rate"]
        digits = 0 if rate["tokens_per_second"] >= 100 else 2
        speed = f"{rate['tokens_per_second']:,.{digits}f}"
        last = f"the last {rate['trials']} trials" if rate["trials"] > 1 else "the last trial"
        known = f"at the {speed} tokens/s of {last} on this model (study '{rate['study']}')"
        yield f"device hours: at most {cost['device_hours']:.2g}, {known}"
