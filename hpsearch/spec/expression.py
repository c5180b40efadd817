"""A small closed language of conditions: `epochs * steps <= 2000 and lr_schedule != 'constant'`.

Numbers, texts, names, `+ - * / // %`, comparisons, `in`, `and`, `or`, `not`. It is parsed by Python's `ast` and read
here, node by node; nothing is ever evaluated by Python. A condition ends in yes or no, and kinds are checked when it
is written, so reading it never fails but for a division by zero and for numbers that no float can hold.
"""

from __future__ import annotations

import ast
import difflib
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, StringConstraints

from hpsearch.spec.schedules import LRSchedule

Kind = Literal["number", "text", "yes or no"]
Names = Mapping[str, int | float | str]

NAMES: dict[str, Kind] = {
    "epochs": "number",
    "batch_size": "number",
    "learning_rate_multiplier": "number",
    "prompt_loss_weight": "number",
    "dropout": "number",
    "weight_decay": "number",
    "lr_schedule": "text",
    "warmup_fraction": "number",
    "frozen_layers": "number",
    "layer_lr_decay": "number",
    "examples": "number",
    "steps": "number",
}
"""What a condition may name: the ten parameters, `examples` of the training set, and `steps` of one epoch."""

TEXTS = {"lr_schedule": get_args(LRSchedule)}
"""What a name that stands for a text can be."""

LONGEST = 500
LARGEST_NUMBER = 1e15
DEEPEST = 64
"""Pieces inside each other. Python's own limit depends on who asks, so a spec could pass here and fail elsewhere."""

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}
_ORDERS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def holds(condition: str, names: Names) -> bool:
    """Whether a checked condition is true of these values; what divides by zero or grows beyond any float is not."""
    try:
        return bool(_value(_parsed(condition), names))
    except (ZeroDivisionError, OverflowError):
        return False


def names_in(condition: str) -> frozenset[str]:
    """The names that a checked condition depends on."""
    return frozenset(node.id for node in ast.walk(_parsed(condition)) if isinstance(node, ast.Name))


@functools.lru_cache(256)
def _parsed(condition: str) -> ast.expr:
    return ast.parse(condition.strip(), mode="eval").body


def check(condition: str) -> str:
    """The condition, when it is one.

    Raises:
        ValueError: It isn't; the message names the column and what stands there.
    """
    text = condition.strip()
    try:
        parsed = ast.parse(text, mode="eval").body
        kind = None if _is_deeper(parsed, DEEPEST) else _kind(parsed, text)
    except SyntaxError as error:
        raise ValueError(f"column {max(error.offset or 1, 1)}: this can't be read ({error.msg})") from None
    except (MemoryError, RecursionError):  # Python's own parser gave up
        kind = None
    if kind is None:
        raise ValueError(f"it is nested too deeply: {DEEPEST} pieces inside each other are the most")
    if kind != "yes or no":
        raise ValueError(f"it gives a {kind}, not yes or no: compare it with something (<=, ==, in, ...)")
    return text


Condition = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST), AfterValidator(check)]
"""A condition that was checked."""


def _is_deeper(parsed: ast.expr, limit: int) -> bool:
    level: list[ast.AST] = [parsed]
    for _ in range(limit):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return bool(level)


def _value(node: ast.expr, names: Names) -> Any:  # noqa: PLR0911 - one per kind of node
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return [_value(part, names) for part in parts]
        case ast.UnaryOp(op=sign, operand=operand):
            value = _value(operand, names)
            return not value if isinstance(sign, ast.Not) else -value
        case ast.BoolOp(op=junction, values=parts):
            return (all if isinstance(junction, ast.And) else any)(_value(part, names) for part in parts)
        case ast.BinOp(left=left, op=symbol, right=right):
            return _ARITHMETIC[type(symbol)](_value(left, names), _value(right, names))
        case ast.Compare(left=left, ops=symbols, comparators=others):
            values = [_value(part, names) for part in (left, *others)]
            return all(
                _COMPARISONS[type(symbol)](*pair)
                for symbol, pair in zip(symbols, itertools.pairwise(values), strict=True)
            )
    raise AssertionError("conditions are checked before they are read")


def _kind(node: ast.expr, text: str) -> Kind:  # noqa: PLR0911, PLR0912 - one per kind of node
    """The kind of what a piece gives; a ValueError names the piece that gives nothing."""

    def fault(what: str, piece: ast.expr = node) -> ValueError:
        return ValueError(f"column {piece.col_offset + 1}, '{ast.get_source_segment(text, piece)}': {what}")

    def expect(kind: Kind, *pieces: ast.expr) -> None:
        for piece in pieces:
            found = _kind(piece, text)
            if found != kind:
                raise fault(f"a {kind} is needed here; this is a {found}", piece)

    match node:
        case ast.Constant(value=bool()):
            raise fault("True and False are not in this language")
        case ast.Constant(value=int() | float() as number):
            if not abs(number) <= LARGEST_NUMBER:
                raise fault(f"numbers go up to {LARGEST_NUMBER:g}")
            return "number"
        case ast.Constant(value=str()):
            return "text"
        case ast.Name(id=name):
            if name not in NAMES:
                raise fault(_unknown(name))
            return NAMES[name]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            expect("yes or no", operand)
            return "yes or no"
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            expect("number", operand)
            return "number"
        case ast.BoolOp(values=parts):
            expect("yes or no", *parts)
            return "yes or no"
        case ast.BinOp(left=left, op=symbol, right=right) if type(symbol) in _ARITHMETIC:
            expect("number", left, right)
            return "number"
        case ast.Compare(left=left, ops=symbols, comparators=others) if all(type(s) in _COMPARISONS for s in symbols):
            first = _kind(left, text)
            for comparison, other in zip(symbols, others, strict=True):
                if isinstance(comparison, ast.In | ast.NotIn):
                    if not isinstance(other, ast.Tuple | ast.List) or len(symbols) > 1:
                        raise fault("behind `in` stands a list in brackets, such as ('linear', 'cosine')", other)
                    expect(first, *other.elts)
                    continue
                expect(first, other)
                if first != "number" and isinstance(comparison, _ORDERS):
                    raise fault(f"a {first} is neither more nor less; compare it with == or !=")
            for name, piece in _never(node):
                raise fault(f"{name} is never that; it is {', '.join(TEXTS[name])}", piece)
            return "yes or no"
    raise fault("this is not in the language: numbers, texts, names, + - * / // %, comparisons, in, and, or, not")


def _never(comparison: ast.Compare) -> Iterator[tuple[str, ast.Constant]]:
    """Texts that a name in a comparison can never be, with the name."""
    pieces = list(ast.walk(comparison))
    names = [piece.id for piece in pieces if isinstance(piece, ast.Name) and piece.id in TEXTS]
    texts = [piece for piece in pieces if isinstance(piece, ast.Constant) and isinstance(piece.value, str)]
    yield from ((name, text) for name in names for text in texts if text.value not in TEXTS[name])


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, list(NAMES), n=1)
    return f"unknown name; did you mean '{close[0]}'?" if close else f"unknown name; known: {', '.join(NAMES)}"
