"""TorchScript from elsewhere: its code, which lies as text in the file, is read before any of it is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch

from agg2exp_core.records import InputError, reason

OWN = ("aten", "prim")
"""PyTorch's own operations; all others are called by the name `ops`."""

REFUSED = ("from_file", "save", "rpc_async", "rpc_sync", "rpc_remote", "__setstate__")
"""Of these what reaches files and other machines, and what is run while a file is loaded."""

BEFORE_1_0 = "model.json"
"""In files of a format that keeps its code elsewhere, which PyTorch still reads."""


def is_script(path: Path) -> bool:
    """Whether a file holds TorchScript, which often ends in .pt as weights do: it brings code along."""
    try:
        with ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (BadZipFile, OSError):
        return False


def load_script(path: Path) -> torch.nn.Module:
    """The network of a TorchScript file. InputError: it is unreadable, or its code does more than compute."""
    try:
        with ZipFile(path) as archive:
            if any(name.endswith(BEFORE_1_0) for name in archive.namelist()):
                raise ValueError("a file of a PyTorch before 1.0")
            code = [archive.read(part) for part in archive.infolist() if part.filename.endswith(".py")]
        found = next((word for text in code for word in _reaching_out(ast.parse(text))), None)
        if found is None:
            return torch.jit.load(path, map_location="cpu")
    except (BadZipFile, OSError, RuntimeError, SyntaxError, ValueError) as error:
        raise InputError("weights must be readable", f"{path.name}: {reason(error)}") from None
    raise InputError("TorchScript must compute, and touch no files", f"{path.name} with {found}")


def _reaching_out(tree: ast.AST) -> Iterator[str]:
    """Names of what does more than compute; as texts too, which `getattr` would look up."""
    nodes = list(ast.walk(tree))
    own = {id(node.value) for node in nodes if isinstance(node, ast.Attribute) and node.attr in OWN}
    for node in nodes:
        match node:
            case ast.Name(id="ops") if id(node) not in own:
                yield "operations that are not PyTorch's own"
            case (
                ast.Name(id=word)
                | ast.Attribute(attr=word)
                | ast.FunctionDef(name=word)
                | ast.Constant(value=str(word))
            ) if word in REFUSED:
                yield word
