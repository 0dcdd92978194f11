"""A bundle's config as plain data: references followed, simple expressions worked out, callables from a list only.

A config of MONAI's can name any callable and hold any Python, which its parser runs. What comes from elsewhere is
therefore read here first, and only what is left, data and names of networks, transforms and inferers, is built.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from functools import cache
from pydoc import locate
from typing import Any

import torch
from monai.bundle.config_item import ComponentLocator
from monai.inferers import SlidingWindowInferer
from monai.transforms import Transform

from agg2exp_core.records import InputError
from agg2exp_core.settings import ALLOWED_VARIABLE, allowed_callables

PACKAGES = ("monai.networks", "monai.transforms", "monai.inferers", "torch.nn", "agg2exp_core.model.nnunet")
WRITING = ("Save", "Write")
"""How transforms that write files begin."""

REFERENCE = re.compile(r"@(\w+(?:(?:::|#)\w+)*)")
DTYPE = re.compile(r"\$(torch|np|numpy)\.(u?int\d+|b?float\d+|bool)")
LEFT_OUT = ("device", "sw_device", "reader", "pretrained", "pretrained_url", "_desc_")
"""Keys that are not read: where a model runs is its user's choice, all scans are NIfTI, and weights came along."""

KEYS = ("_target_", "_disabled_")
"""Of MONAI's own keys those that run nothing."""

WORD = re.compile(r"[\w ,-]*")
"""What a text may be. MONAI looks up dotted names, opens paths and asks addresses; no word of letters is one."""

KINDS = {"network_def": torch.nn.Module, "preprocessing": Transform, "inferer": SlidingWindowInferer}
"""What the classes of a section must be, so that nothing else is built on the way."""

DEEPEST, MOST_VALUES = 32, 100_000
"""Of references in references, and of values that one section may come to: a few lines could else fill the memory."""

LONGEST = 64


def _times(one: Any, other: Any) -> Any:
    """A product; of a list only a short one, and of a text none."""
    for part, count in ((one, other), (other, one)):
        if isinstance(part, str) or (isinstance(part, list) and count > LONGEST):
            raise ValueError
    return one * other


OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: _times, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.USub: operator.neg, ast.Not: operator.not_, ast.Eq: operator.eq,
    ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
NOT_READ = "a bundle's config may hold data, references, arithmetic and choices between them"


def plain_section(config: Mapping[str, Any], key: str) -> Any:
    """One section, such as `network_def`, as data that MONAI's parser can build without running anything else.

    InputError: the section is missing, refers to what is not there, holds an expression that is more than arithmetic,
    names a callable that is not allowed, or holds a text that could be looked up, opened or asked for.
    """
    if key not in config:
        raise InputError("a bundle's config needs network_def, preprocessing and inferer", f"no {key}")
    found = _Reader(config).read(config[key], 0)
    _check(found, KINDS.get(key, object))
    return found


def plain_text(config: Mapping[str, Any], text: str) -> str:
    """A text of the config worked out, to be read and not to be built. InputError: it is more than that."""
    found = _Reader(config).read(text, 0)
    if not isinstance(found, str):
        raise InputError(NOT_READ, repr(found)[:80], f"a text for {text[:80]}")
    return found


class _Reader:
    """Values of one config with references and expressions worked out."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self._left = MOST_VALUES

    def read(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            raise InputError("references of a bundle's config must end", "a circle, or too many")
        if isinstance(value, dict):
            return {key: self.read(one, depth + 1) for key, one in value.items() if key not in LEFT_OUT}
        if isinstance(value, list):
            return [self.read(one, depth + 1) for one in value]
        if not isinstance(value, str):
            return value
        if whole := REFERENCE.fullmatch(value):
            return self._followed(whole[1], depth)
        return self._evaluated(value, depth) if value.startswith("$") and not DTYPE.fullmatch(value) else value

    def _followed(self, path: str, depth: int) -> Any:
        found: Any = self.config
        for name in re.split("::|#", path):
            try:
                found = found[int(name) if isinstance(found, list) else name]
            except (KeyError, IndexError, TypeError, ValueError):
                raise InputError("references of a bundle's config must lead somewhere", f"@{path}") from None
        return self.read(found, depth + 1)

    def _evaluated(self, text: str, depth: int) -> Any:
        known: dict[str, Any] = {}

        def named(match: re.Match[str]) -> str:
            known[f"_reference{len(known)}"] = self._followed(match[1], depth)
            return list(known)[-1]

        try:
            tree = ast.parse(REFERENCE.sub(named, text[1:]).strip(), mode="eval")
            return _worked_out(tree.body, known)
        except (SyntaxError, TypeError, KeyError, ArithmeticError, RecursionError, ValueError):
            raise InputError(NOT_READ, text[:80]) from None


def _worked_out(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """The value of an expression; KeyError for anything but constants, known names, arithmetic and choices."""
    match node:
        case ast.Constant(value=value) if isinstance(value, int | float | bool | str | None):
            return value
        case ast.Name(id=name):
            return known[name]
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_worked_out(part, known) for part in parts]
        case ast.UnaryOp(op=sign, operand=operand):
            return OPERATORS[type(sign)](_worked_out(operand, known))
        case ast.BinOp(left=left, op=sign, right=right):
            return OPERATORS[type(sign)](_worked_out(left, known), _worked_out(right, known))
        case ast.Compare(left=left, ops=[sign], comparators=[right]):
            return OPERATORS[type(sign)](_worked_out(left, known), _worked_out(right, known))
        case ast.IfExp(test=test, body=body, orelse=other):
            return _worked_out(body if _worked_out(test, known) else other, known)
        case ast.Attribute() if DTYPE.fullmatch(f"${ast.unparse(node)}"):
            return f"${ast.unparse(node)}"
    raise KeyError


def _check(value: Any, kind: type) -> None:
    """InputError for what MONAI would run, look up, open or ask for, and for callables that are not on the list."""
    if isinstance(value, list):
        for one in value:
            _check(one, kind)
    elif isinstance(value, dict):
        for key, one in value.items():
            if str(key).startswith("_") and key not in KEYS:
                raise InputError(NOT_READ, str(key)[:80])
            if key != "_target_":
                _check(one, kind)
        if "_target_" in value:
            check_callable(str(value["_target_"]), kind)
    elif isinstance(value, str) and not (WORD.fullmatch(value) or DTYPE.fullmatch(value)):
        raise InputError(NOT_READ, repr(value)[:80], "texts of letters, digits, blanks, commas, _ and -")


def check_callable(name: str, kind: type = object) -> None:
    """InputError unless a `_target_` names a class of the allowed packages, MONAI's and PyTorch's, that is of a kind.

    What an operator allows may be anything.
    """
    found = [name] if "." in name else [f"{module}.{name}" for module in _modules_of(name)]
    foreign = [path for path in found if not any(_lies_in(path, package) for package in allowed_callables())]
    if not found or not all(map(_is_allowed, foreign)):
        allowed = (
            f"classes of {', '.join(PACKAGES)} that write nothing; an operator allows others by {ALLOWED_VARIABLE}"
        )
        raise InputError("a bundle's config may name only allowed callables", repr(name)[:80], allowed)
    if not all(issubclass(locate(path), kind) for path in foreign):  # type: ignore[arg-type]
        raise InputError(f"every class of this section must be a {kind.__name__}", name)


@cache
def _locator() -> ComponentLocator:
    return ComponentLocator()


def _modules_of(name: str) -> list[str]:
    """Where MONAI looks for a name without dots."""
    found = _locator().get_component_module_name(name)
    return [found] if isinstance(found, str) else list(found or ())


def _is_allowed(path: str) -> bool:
    if not any(_lies_in(path, package) for package in PACKAGES):
        return False
    found = locate(path)  # of these packages alone, whose modules import others: what counts is where it is made
    made = getattr(found, "__module__", "")
    writes = isinstance(found, type) and found.__name__.startswith(WRITING)
    return isinstance(found, type) and not writes and any(_lies_in(f"{made}.", package) for package in PACKAGES)


def _lies_in(path: str, package: str) -> bool:
    return path.startswith(f"{package}.")
