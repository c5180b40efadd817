"""Write the `tickets` data set: short customer support tickets and the JSON record each should become.

The task is one that people do fine-tune small models for. It is generated rather than collected, so that it
has no licence or privacy question and can be made again from this file. Every field follows from the text,
yet not by one keyword: an item goes by several names and may stand next to another one that is not meant, a
problem is told as a symptom, and its urgency may be said, implied by a circumstance, denied or absent.

Run from anywhere:

    python studies/data/make_tickets.py
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OUTPUT_DIR = Path(__file__).resolve().parent / "tickets"

SEED = 7411
TRAIN_EXAMPLES = 400
VALIDATION_EXAMPLES = 100
TEST_EXAMPLES = 100
# Two tickets that share more than this fraction of their words (order numbers aside) are near duplicates.
MAX_WORD_OVERLAP = 0.5

# Names that customers use for each item; the first is the one that goes in the record.
ITEMS: dict[str, tuple[str, ...]] = {
    "router": ("router", "wifi router", "wifi box", "AX3 router"),
    "printer": ("printer", "laser printer", "inkjet", "LP20 printer"),
    "phone": ("phone", "smartphone", "mobile", "Nova 5 phone"),
    "laptop": ("laptop", "notebook", "ultrabook", "work laptop"),
    "tablet": ("tablet", "drawing tablet", "Tab 10", "kids tablet"),
    "headset": ("headset", "headphones", "earbuds", "gaming headset"),
    "camera": ("camera", "webcam", "doorbell cam", "action cam"),
    "monitor": ("monitor", "desk display", "27 inch monitor", "second monitor"),
    "speaker": ("speaker", "soundbar", "bluetooth speaker", "party speaker"),
    "watch": ("watch", "smartwatch", "fitness band", "running watch"),
}

_CHARGED = ("phone", "laptop", "tablet", "headset", "camera", "speaker", "watch")
_CONNECTED = ("router", "printer", "phone", "laptop", "tablet", "headset", "camera", "speaker", "watch")
_SCREENED = ("phone", "laptop", "tablet", "monitor", "watch")
_SOUNDING = ("phone", "laptop", "headset", "speaker", "monitor")
_ANY = tuple(ITEMS)


@dataclass(frozen=True)
class Problem:
    """How customers tell one problem. `{}` stands for the item with its article or possessive."""

    items: tuple[str, ...]
    phrasings: tuple[str, ...]


PROBLEMS: dict[str, Problem] = {
    "power": Problem(
        _ANY,
        (
            "{} won't turn on",
            "{} is dead, no lights at all",
            "pressing the button on {} does nothing",
            "{} shuts off by itself",
            "{} keeps restarting",
            "no sign of life from {}",
            "{} went off and never came back",
        ),
    ),
    "battery": Problem(
        _CHARGED,
        (
            "{} is empty after an hour",
            "{} won't charge past 40%",
            "{} doesn't hold a charge",
            "I plug in {} and it stays at 0%",
            "{} drains overnight",
            "{} only runs on the cable",
            "have to charge {} three times a day",
        ),
    ),
    "connection": Problem(
        _CONNECTED,
        (
            "{} drops the wifi",
            "{} won't pair",
            "{} can't find the network",
            "{} keeps going offline",
            "no signal on {}",
            "{} disconnects every few minutes",
            "can't get {} online",
        ),
    ),
    "screen": Problem(
        _SCREENED,
        (
            "{} shows green lines",
            "{} flickers",
            "half of {} stays black",
            "there are dead pixels on {}",
            "{} is too dim to read",
            "the picture on {} is all blurry",
            "{} shows nothing but white",
        ),
    ),
    "sound": Problem(
        _SOUNDING,
        (
            "{} crackles",
            "no audio from {}",
            "{} only plays on the left side",
            "{} is way too quiet",
            "I hear a loud hum from {}",
            "voices on {} are distorted",
            "{} went mute",
        ),
    ),
    "heat": Problem(
        _ANY,
        (
            "{} gets very hot",
            "{} burned my hand",
            "{} smells like smoke",
            "{} overheats",
            "I can't touch {} after ten minutes, it's boiling",
            "there is a burning smell from {}",
        ),
    ),
    "damage": Problem(
        _ANY,
        (
            "{} came with a crack",
            "the case of {} is broken",
            "the box was crushed and {} is dented",
            "{} has deep scratches",
            "a corner of {} is chipped",
            "found {} in pieces",
        ),
    ),
    "missing": Problem(
        _ANY,
        (
            "the cable for {} wasn't in the box",
            "{} came without its manual",
            "no adapter with {}",
            "parts of {} are not in the package",
            "you forgot the accessories for {}",
            "{} was sent without the plug",
        ),
    ),
    "delivery": Problem(
        _ANY,
        (
            "{} still isn't here",
            "where is {}?",
            "{} was due last week",
            "tracking for {} hasn't moved",
            "the courier lost {}",
            "still waiting for {}",
            "{} went to the wrong address",
        ),
    ),
    "billing": Problem(
        _ANY,
        (
            "I was charged twice for {}",
            "the invoice for {} is wrong",
            "{} cost more than the price shown",
            "no refund yet for {}",
            "my discount on {} wasn't applied",
            "I paid for {} and need a receipt",
        ),
    ),
}

# Said outright, implied by a circumstance, or (for low) an apparent cue that is denied.
LEVEL_CUES: dict[str, tuple[str, ...]] = {
    "high": (
        "this is urgent",
        "I need it today",
        "please call me right now",
        "the whole office is stuck",
        "my flight leaves tonight",
        "exam is tomorrow morning",
        "we lose customers every hour",
        "fix this ASAP",
        "can't wait any longer",
        "I have a client at noon",
    ),
    "low": (
        "no rush",
        "not urgent at all",
        "whenever you have time",
        "I can wait",
        "just letting you know",
        "I have a spare for now",
        "next month is fine",
        "don't hurry",
        "it's a small thing",
        "no need to call today",
    ),
    "normal": (
        "please advise",
        "what should I do?",
        "can you help?",
        "how do we fix it?",
        "hope you can look into it",
        "",
        "",
        "",
    ),
}
_LEVEL_WEIGHTS = {"high": 0.35, "low": 0.3, "normal": 0.35}

_OPENINGS = ("Hi", "Hello", "Hey", "Good morning", "Dear team", "Hi support", "", "", "", "", "", "")
_CLOSINGS = ("Thanks", "Thank you", "Cheers", "Regards, Ana", "Tom", "- Priya", "", "", "", "", "", "")
_DETERMINERS = ("my", "the", "our", "my new", "the new", "this")
_ORDER_FORMS = ("order {}", "order #{}", "order no. {}", "ref {}")
# An item that works, so that the first item named in a ticket is not always the one meant.
_DISTRACTORS = ("the {} is fine, but {}", "it's not the {}: {}", "the {} works, {}", "got the {} ok, but {}")


@dataclass(frozen=True)
class Ticket:
    """One example."""

    text: str
    item: str
    problem: str
    level: str

    def words(self) -> frozenset[str]:
        """The words that tell tickets apart: letters only, so that a new order number is not a new ticket."""
        return frozenset(re.findall(r"[a-z']+", self.text.lower()))

    def json_line(self) -> str:
        """The example as one line of chat-format JSON."""
        record = {"item": self.item, "problem": self.problem, "level": self.level}
        messages = [
            {"role": "user", "content": self.text},
            {"role": "assistant", "content": json.dumps(record, separators=(",", ":"))},
        ]
        return json.dumps({"messages": messages}, ensure_ascii=False)


def capitalised(sentence: str) -> str:
    """Upper-case the first letter and leave the rest, which `str.capitalize` would not."""
    return sentence[:1].upper() + sentence[1:]


def misspelled(text: str, rng: random.Random) -> str:
    """Drop, double or swap a letter inside one longer word."""
    words = text.split(" ")
    candidates = [index for index, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not candidates:
        return text
    index = rng.choice(candidates)
    word = words[index]
    at = rng.randrange(1, len(word) - 1)
    words[index] = rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        )
    )
    return " ".join(words)


def statement(item: str, problem: str, rng: random.Random) -> str:
    """Tell the problem with the item, sometimes next to another item that is not meant."""
    name = f"{rng.choice(_DETERMINERS)} {rng.choice(ITEMS[item])}"
    told = rng.choice(PROBLEMS[problem].phrasings).format(name)
    if rng.random() < 0.2:
        other = rng.choice([candidate for candidate in ITEMS if candidate != item])
        told = rng.choice(_DISTRACTORS).format(rng.choice(ITEMS[other]), told)
    return told


def make_ticket(rng: random.Random) -> Ticket:
    """Draw the record first, then a text that tells it."""
    problem = rng.choice(list(PROBLEMS))
    item = rng.choice(PROBLEMS[problem].items)
    level = rng.choices(list(_LEVEL_WEIGHTS), list(_LEVEL_WEIGHTS.values()))[0]

    parts = [statement(item, problem, rng)]
    cue = rng.choice(LEVEL_CUES[level])
    if cue:
        parts.insert(rng.choice((0, 1, 1)), cue)
    if rng.random() < 0.35:
        order = rng.choice(_ORDER_FORMS).format(rng.randrange(100, 1000))
        parts.insert(rng.randrange(len(parts) + 1), order)
    parts = [part for part in (rng.choice(_OPENINGS), *parts, rng.choice(_CLOSINGS)) if part]

    style = rng.random()
    if style < 0.6:
        text = " ".join(capitalised(part) + ("" if part.endswith("?") else ".") for part in parts)
    elif style < 0.95:
        text = ", ".join(parts).replace("?,", "?").lower()
    else:
        text = "! ".join(parts).replace("?!", "?").upper()
    if rng.random() < 0.25:
        text = misspelled(text, rng)
    return Ticket(text, item, problem, level)


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity of two sets of words."""
    return len(one & other) / len(one | other)


def make_distinct(count: int, rng: random.Random) -> list[Ticket]:
    """Draw tickets, discarding each that nearly repeats an earlier one."""
    tickets: list[Ticket] = []
    bags: list[frozenset[str]] = []
    while len(tickets) < count:
        ticket = make_ticket(rng)
        bag = ticket.words()
        if all(overlap(bag, earlier) <= MAX_WORD_OVERLAP for earlier in bags):
            tickets.append(ticket)
            bags.append(bag)
    return tickets


def write(path: Path, tickets: Sequence[Ticket]) -> None:
    """Write one part of the data set."""
    path.write_text("".join(ticket.json_line() + "\n" for ticket in tickets), encoding="utf-8")


def main() -> None:
    """Write all parts."""
    parts = {"train": TRAIN_EXAMPLES, "validation": VALIDATION_EXAMPLES, "test": TEST_EXAMPLES}
    tickets = iter(make_distinct(sum(parts.values()), random.Random(SEED)))
    OUTPUT_DIR.mkdir(exist_ok=True)
    for part, count in parts.items():
        write(OUTPUT_DIR / f"{part}.jsonl", list(itertools.islice(tickets, count)))


if __name__ == "__main__":
    main()
