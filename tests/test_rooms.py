"""A room of the package imports only rooms above it, so that the listing of the package is its architecture."""

import ast
from pathlib import Path

import pytest

import dsob_pl

ROOT = Path(dsob_pl.__file__).parent
ORDER = [
    "errors",
    "networks",
    "divergences",
    "risk",
    "envs",
    "world_models",
    "critics",
    "bellman",
    "data",
    "agents",
    "ground_truth",
    "training",
    "tracking",
    "experiments",
    "analysis",
    "cli",
]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        rooms |= {name.split(".")[1] for name in names if name.startswith("dsob_pl.")}
    return rooms


@pytest.mark.parametrize("room", [p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()])
def test_a_room_imports_only_rooms_above_it(room):
    assert room in ORDER
    below = set(ORDER[ORDER.index(room) + 1 :])
    for path in (ROOT / room).rglob("*.py"):
        assert not imported_rooms(path) & below, f"{path.name} imports {imported_rooms(path) & below}"
