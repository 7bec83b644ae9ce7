"""The arms that are timed side by side, and which of them a machine can run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from xray_lightning.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed")
PAPER_LOOP, DALI, COMPUTE_ONLY = "paper_loop", "dali", "compute_only"


@dataclass(frozen=True)
class Arm:
    """One way of training, timed in processes of its own.

    Attributes:
        what: told in the table's notes.
        package: what must be installed for it, and `install` how.
        cuda: whether it runs on CUDA only.
        precision: the only one that it makes sense at; None for any.
        run: for an arm that is a run of this project, what differs from its defaults: fields of
            `Speed`, `fused`, `cache` or `device_memory_share`. None for a bare loop.
    """

    name: str
    what: str
    package: str | None = None
    install: str = "uv sync --extra bench"
    cuda: bool = False
    precision: str | None = None
    run: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def switched(self) -> bool:
        """Whether this is `ours` with one switch turned over."""
        return bool(self.run)


_ALL = (
    Arm(
        PAPER_LOOP,
        "as the paper: every step decodes its images with PIL, converts them to RGB, resizes and "
        "standardises them in the training process; torchvision's 3-channel model, NCHW, Adam",
    ),
    Arm(
        "paper_workers",
        "the same decoding (gray instead of RGB) in persistent DataLoader workers, their number "
        "tuned beforehand; the step of ours",
    ),
    Arm(
        "timm",
        "timm's create_loader (ImageDataset, gray, no augmentation), as many workers; the step of "
        "ours, which standardises too",
        package="timm",
    ),
    Arm(
        "monai",
        "MONAI's CacheDataset (decoded, resized, standardised, kept in memory) and "
        "ThreadDataLoader; the step of ours",
        package="monai",
    ),
    Arm(
        DALI,
        "NVIDIA DALI decodes, resizes and standardises on the GPU, by another rule than Pillow's, "
        "so that its first loss may differ by 0.2 %; the step of ours",
        package="nvidia.dali",
        install="uv pip install nvidia-dali-cuda120",
        cuda=True,
    ),
    Arm("ours", "a whole run of this project through Lightning, with all switches", run={}),
    Arm("ours_no_cache", "ours with data.cache=off", run={"cache": "off"}),
    Arm("ours_no_channels_last", "ours in NCHW", run={"channels_last": False}),
    Arm(
        "ours_no_keep_freed_memory",
        "ours, memory freed to the system each step",
        run={"keep_freed_memory": False},
    ),
    Arm("ours_no_fused", "ours with the unfused optimizer", run={"fused": False}),
    Arm("ours_no_cuda_graph", "ours without CUDA graphs", cuda=True, run={"cuda_graph": False}),
    Arm(
        "ours_no_device_data",
        "ours with batches streamed from the host",
        cuda=True,
        run={"device_memory_share": 0.0},
    ),
    Arm("ours_no_tf32", "ours without TF32", cuda=True, precision="32-true", run={"tf32": False}),
    Arm(
        "ours_no_cudnn_benchmark",
        "ours without cuDNN's search",
        cuda=True,
        run={"cudnn_benchmark": False},
    ),
    Arm("ours_compile", "ours with torch.compile", run={"compile": True}),
    Arm(
        COMPUTE_ONLY,
        "the limit: the model and optimizer step of ours on one standardised batch that lies on "
        "the device; no loader, no Trainer, no logging",
    ),
)
ARMS = {arm.name: arm for arm in _ALL}


def refuse_unknown(asked: Sequence[str]) -> None:
    """Refuse names that are no arm's.

    Raises:
        UserError: naming them, and the arms there are.
    """
    if unknown := [name for name in asked if name not in ARMS]:
        raise UserError(f"--arms {','.join(unknown)} is unknown; choose from {','.join(ARMS)}")


def choose_arms(asked: Sequence[str], *, accelerator: str) -> tuple[list[Arm], dict[str, str]]:
    """The arms to time, and why each of the others is left out.

    Args:
        asked: known names, each of which must be possible here; none for every arm that is.

    Raises:
        UserError: an arm that was named cannot run here.
    """
    chosen: list[Arm] = []
    skipped: dict[str, str] = {}
    for arm in _ALL:
        if asked and arm.name not in asked:
            continue
        reason = _missing(arm, accelerator)
        if reason and asked:
            raise UserError(f"--arms {arm.name} cannot run: {reason}")
        if reason:
            skipped[arm.name] = reason
        else:
            chosen.append(arm)
    return chosen, skipped


def _missing(arm: Arm, accelerator: str) -> str | None:
    if arm.cuda and accelerator != "cuda":
        return "it needs --accelerator cuda"
    if arm.name == "ours_no_keep_freed_memory" and accelerator == "cuda":
        return "it needs --accelerator cpu"
    if arm.package is not None and not importable(arm.package):
        return f"{arm.package} is not installed: {arm.install}"
    return None


def importable(module: str) -> bool:
    """Whether the module is installed, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def pairings(arms: Sequence[Arm], precisions: Sequence[str]) -> list[tuple[Arm, str]]:
    """Each arm at each precision that it is timed at, in the order of one repeat.

    A switch is turned over at the last precision alone: at each it would double the time for
    a difference that the other precision has shown.
    """
    pairs = [(arm, precision) for precision in precisions for arm in arms]
    return [
        (arm, precision)
        for arm, precision in pairs
        if precision in ((arm.precision,) if arm.precision else precisions)
        and (not arm.switched or arm.precision or precision == precisions[-1])
    ]
