"""What is found out about a study, as the note that the Optuna dashboard shows on its page."""

from __future__ import annotations

import importlib.util
from functools import partial

import optuna

from hpsearch.results import rank
from hpsearch.results.diagnosis import diagnose
from hpsearch.results.insight import Insight, insight
from hpsearch.results.schedule import told
from hpsearch.search import history
from hpsearch.search.importance import importance
from hpsearch.spec.study import StudySpec


def write(study: optuna.Study, spec: StudySpec) -> None:
    """Replace the study's note; nothing happens without the dashboard."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        return
    from optuna_dashboard import save_note

    ranked = rank(spec.name, "", spec.objective, history.baseline(study), history.trials(study)).trials
    diagnosed = partial(diagnose, objective=spec.objective)
    found = as_markdown(insight(spec.search_space, ranked, importance(study), diagnosed))
    lines = [f"- {line}" for line in told(ranked[0].schedule)] if ranked else []
    if lines:
        found += f"\n\nThe best trial, {ranked[0].number}, has no single config: its params changed on the way.\n\n"
    verdict = history.verdict(study)
    judged = "" if verdict is None else f"**Verdict:** {verdict['text']}\n\n"
    save_note(study, judged + found + "\n".join(lines))


def as_markdown(found: Insight) -> str:
    """An insight for people: a table, then what to do."""
    lines = [f"**{found.trials} ranked trials** (complete, under one evaluation contract)", ""]
    lines += ["| parameter | importance | effect |", "|---|---|---|"]
    for effect in found.effects:
        part = "" if effect.importance is None else f"{effect.importance:.0%}"
        lines.append(f"| {effect.parameter} | {part} | {_EFFECTS[effect.is_measurable]} |")
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in found.advice)])


_EFFECTS = {None: "too few trials to say", True: "measurable", False: "not measurable"}
