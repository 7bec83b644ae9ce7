"""Layout of the package: its rooms, their order, the names of modules, and light commands."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, TRAIN_PY, Ended

PACKAGE = REPOSITORY / "xray_lightning"
ORDER = [
    *("errors", "findings", "files", "workers", "progress", "terminal", "hardware", "html"),
    *("data", "models", "runs", "evaluation", "training", "report", "deploy", "cli"),
]
# Names that say nothing to a reader of the field.
NAMELESS = {
    *("utils", "helpers", "common", "base", "misc", "util", "helper", "shown", "known", "facts"),
    *("plain", "use", "alike", "answers", "rows"),
}
# A command has the name of what it calls; a data set has a reader and a downloader.
SHARED = {"figures", "page", "nih", "chestmnist", "explain", "evaluate", "tables"}
# One concept each, and no module above or below where it would be looked for.
SMALL = {
    "errors.py",
    "models/schedules.py",
    "cli/main.py",
    "cli/options.py",
    "data/sources/chestmnist.py",
}
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = (
    *("torch", "torchvision", "lightning", "pandas", "numpy", "matplotlib", "mpi4py", "pydantic"),
)


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its head or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{name.name}" for name in node.names]
            yield from names if node.module == "xray_lightning" else [str(node.module)]


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_its_place_in_the_order() -> None:
    assert {layer(path) for path in FILES} - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_backwards_only(path: Path) -> None:
    if layer(path) == "__init__":
        return
    here = ORDER.index(layer(path))
    for module in imported(path):
        if module.startswith("xray_lightning."):
            assert ORDER.index(module.split(".")[1]) <= here, f"imports {module}"


def test_only_train_py_knows_hydra() -> None:
    for path in FILES:
        known = [name for name in imported(path) if name.split(".")[0] in ("hydra", "omegaconf")]
        assert known == [], path


def test_no_module_has_a_name_that_tells_nothing() -> None:
    names = {path.stem for path in FILES} | {path.name for path in PACKAGE.rglob("*/")}
    assert not names & NAMELESS


def test_no_two_modules_share_a_name() -> None:
    names = Counter(path.stem for path in FILES if path.stem != "__init__")
    assert {name for name, count in names.items() if count > 1} <= SHARED


def test_no_module_is_too_small_to_have_a_room_of_its_own() -> None:
    lines = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in FILES
        if path.stem != "__init__"
    }
    assert {name for name, count in lines.items() if count < 60} <= SMALL


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--cfg", "job"), ("model=nosuch",), ("trainer.max_epochs=0",)],
    ids=" ".join,
)
def test_a_call_that_trains_nothing_imports_nothing_heavy(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        f"heavy = {HEAVY!r}\n"
        "def tell():\n"
        "    print('IMPORTED', *[name for name in heavy if name in sys.modules])\n"
        "atexit.register(tell)\n"
    )
    done = Ended.of([sys.executable, TRAIN_PY, *arguments], tmp_path, PYTHONPATH=str(tmp_path))
    assert done.stdout.splitlines()[-1] == "IMPORTED", done.stdout[-200:] + done.stderr
