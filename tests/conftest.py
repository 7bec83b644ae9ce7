"""Small data that tests share, drawn once a session, and a way to run the real commands."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browsing
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from xray_lightning.data.sources.phantom.dataset import PhantomSpec, ensure_phantoms

if TYPE_CHECKING:
    from xray_lightning.models.classifier import Classifier

REPOSITORY = Path(__file__).parent.parent
TRAIN_PY = str(REPOSITORY / "train.py")
COMPILED = REPOSITORY / ".pytest_cache" / "compiled"  # bytecode, where the caller writes none
IMAGES = 80  # enough for every finding to be there, few enough for a run of seconds


# Real data are used where a folder has them; the environment variable names another one.
REAL = Path(os.environ.get("XRAY_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"no real data in {REAL}; XRAY_TEST_DATA may name their folder"
)

settings.register_profile(
    "few",  # the same ones each time; a busy machine is no failure, and fixtures may be shared
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("many", settings.get_profile("few"), max_examples=500)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("many" if config.option.markexpr == "slow" else "few")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let `-m slow` try every property on many inputs."""
    for item in items if config.option.markexpr == "slow" else ():
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.slow)


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """Fill a folder of this name in one of the test processes, for all of them."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.done").exists():
                folder.mkdir()
                fill(folder)
                (shared / f"{name}.done").touch()
        return folder

    return made


@pytest.fixture(scope="session")
def phantoms(once: Once) -> Path:
    """A folder of 80 phantoms of 64 x 64 pixels in the NIH layout."""
    spec = PhantomSpec(images=IMAGES, size=64, seed=7)
    return once("phantoms", lambda folder: ensure_phantoms(folder, spec))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str
    folder: Path  # its working directory

    @classmethod
    def of(
        cls, command: Sequence[str], folder: Path, *, timeout: float = 240, **env: str
    ) -> "Ended":
        """Run a command in a folder to its end."""
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment(**env),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return cls(done.returncode, done.stdout, done.stderr, folder)

    @property
    def runs(self) -> list[Path]:
        """Its run folders, in the order of their names."""
        return sorted(path.parent for path in self.folder.glob("runs/**/results.json"))

    @property
    def results(self) -> list[dict[str, Any]]:
        return [json.loads((run / "results.json").read_text()) for run in self.runs]

    @property
    def error(self) -> str:
        """The one line that a failed command leaves on stderr; asserts that it is one."""
        # Open MPI may put a blank or a NUL of its own before a line.
        stripped = (line.strip("\0 ") for line in self.stderr.splitlines())
        lines = [line for line in stripped if line.startswith("xray: error:")]
        assert len(lines) == 1, self.stderr
        assert "Traceback" not in self.stderr, self.stderr
        return lines[0]


SMALL = (
    "data.image_size=32",
    "data.batch_size=16",
    "trainer.max_epochs=1",
    "accelerator=cpu",
    "evaluation.resamples=20",
    "report=false",
)

Train = Callable[..., Ended]
Xray = Callable[..., tuple[int, str, str]]

# Threads that wait for each other do not spin: with busy neighbours that costs most of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def environment(**further: str) -> dict[str, str]:
    """This process's environment, with the virtual environment's commands on PATH."""
    bin_folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(COMPILED),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        **further,
    }


def small_run(phantoms: Path, folder: Path) -> list[str]:
    """Overrides for a run of seconds on the session's phantoms, with its cache in a folder."""
    return [
        f"data.root={phantoms}",
        f"data.cache_dir={folder}/cache",
        "data.phantom=null",
        *SMALL,
    ]


def flags_first(arguments: Iterable[str]) -> list[str]:
    """Arguments of train.py in an order that argparse takes."""
    return sorted(arguments, key=lambda argument: not argument.startswith("-"))


@pytest.fixture
def small(phantoms: Path, tmp_path: Path) -> list[str]:
    return small_run(phantoms, tmp_path)


@pytest.fixture
def train(tmp_path: Path, small: list[str]) -> Train:
    """Run `python train.py` for real, in a working directory of its own, on the small phantoms."""

    def run(
        *overrides: str,
        before: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        defaults: bool = True,
        timeout: float = 240,
    ) -> Ended:
        arguments = flags_first([*(small if defaults else ()), *overrides])
        command = [*before, sys.executable, TRAIN_PY, *arguments]
        return Ended.of(command, tmp_path, timeout=timeout, **(env or {}))

    return run


@pytest.fixture(scope="session")
def server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tests" / "train_server.py")],
        env=environment(PYTHONPATH=str(REPOSITORY)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def call(server: subprocess.Popen[str], small: list[str], tmp_path: Path) -> Train:
    """As `train`, in a process that has imported torch already."""

    def run(*overrides: str, defaults: bool = True, **env: str) -> Ended:
        told = {
            "script": TRAIN_PY,
            "arguments": flags_first([*(small if defaults else ()), *overrides]),
            "folder": str(tmp_path),
            "env": env,
        }
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(told) + "\n")
        server.stdin.flush()
        exit_code = int(server.stdout.readline())
        out, err = (Path(f"{tmp_path}.{name}").read_text() for name in ("stdout", "stderr"))
        return Ended(exit_code, out, err, tmp_path)

    return run


@pytest.fixture(scope="session")
def first(phantoms: Path, once: Once) -> Ended:
    """A run of the defaults but for its size, on the session's phantoms."""

    def fill(folder: Path) -> None:
        ended = Ended.of([sys.executable, TRAIN_PY, *small_run(phantoms, folder)], folder)
        told = [ended.exit_code, ended.stdout, ended.stderr]
        (folder / "ended.json").write_text(json.dumps(told))

    folder = once("first", fill)
    return Ended(*json.loads((folder / "ended.json").read_text()), folder)


@pytest.fixture
def xray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Xray:
    """The `xray` command in this process, in tmp_path: its exit code, stdout and stderr."""
    from xray_lightning.cli import main as cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XRAY_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["xray", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser; skips where the machine has none."""
    with browsing.started() as browser:
        yield browser


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """A function that opens a page in a window of its own, at some width and colour scheme."""
    with browsing.windows(browser) as open_page:
        yield open_page


@pytest.fixture(scope="session")
def ckpt(once: Once) -> Path:
    """A checkpoint of a small ResNet18 that has learned nothing, with operating points."""
    from checkpoints import checkpoint

    return once("ckpt", lambda folder: checkpoint(folder / "one.ckpt")) / "one.ckpt"


class Canary:
    """What a hostile file does when it is unpickled: it makes this file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def tiny_classifier(arch: str | None = None, **further: Any) -> "Classifier":
    """A classifier that fits and checkpoints at once: one linear layer of 32 x 32 images.

    Args:
        arch: a backbone in its place.
        further: arguments of the class.
    """
    import torch
    from lightning.pytorch import seed_everything

    from xray_lightning.models.backbones import build_backbone
    from xray_lightning.models.classifier import Classifier

    seed_everything(0, verbose=False)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, 14))
    backbone = linear if arch is None else build_backbone(arch=arch)
    optimizer = partial(torch.optim.Adam, lr=1e-3)
    return Classifier(**({"backbone": backbone, "optimizer": optimizer} | further))
