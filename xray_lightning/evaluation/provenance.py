"""What a run folder says of the training behind its checkpoints and predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_lightning.errors import check_whole
from xray_lightning.training.results import FILE_NAME as RESULTS
from xray_lightning.training.results import RunRecord


@dataclass(frozen=True)
class Provenance:
    """A run's results.json, as far as there is one; what it lacks is empty or None.

    Attributes:
        folder: the run folder; None where there is none.
        results: its results.json; empty where there is none.
    """

    folder: Path | None
    results: Mapping[str, Any]

    @classmethod
    def of_folder(cls, folder: Path) -> "Provenance":
        """What a folder says, if it is a run folder."""
        record = RunRecord.load(folder) if (folder / RESULTS).is_file() else None
        if record is None or not isinstance(record.content, Mapping):
            return cls(None, {})
        return cls(folder, record.content)

    @classmethod
    def of_checkpoint(cls, path: Path) -> "Provenance":
        """What the run folder of RUN/checkpoints/NAME.ckpt says."""
        return cls.of_folder(path.absolute().parent.parent)

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's resolved configuration."""
        return _mapping(self.results.get("config"))

    @property
    def data(self) -> Mapping[str, Any]:
        """Its group `data`."""
        return _mapping(self.config.get("data"))

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """Its group `evaluation`."""
        return _mapping(self.config.get("evaluation"))

    @property
    def tested_only(self) -> bool:
        """Whether the run tested another run's checkpoint."""
        return self.config.get("ckpt_path") is not None

    def bootstrap(self, resamples: int | None, seed: int | None) -> tuple[int, int]:
        """Resamples and seed: those asked for, else the run's, else 1,000 and 0.

        Raises:
            UserError: they are no whole numbers of at least 0.
        """
        resamples = self.evaluation.get("resamples", 1000) if resamples is None else resamples
        seed = self.evaluation.get("seed", 0) if seed is None else seed
        check_whole("--resamples", resamples, least=0)
        check_whole("--seed", seed, least=0)
        return resamples, seed

    @property
    def prevalences(self) -> dict[str, float] | None:
        """The share of its training images with each finding."""
        data = _mapping(self.results.get("data"))
        images = _mapping(data.get("images")).get("train")
        positives = _mapping(_mapping(data.get("positives")).get("train"))
        counts = [images, *positives.values()]
        if not images or not positives or not all(isinstance(count, int) for count in counts):
            return None
        return {finding: count / images for finding, count in positives.items()}

    @property
    def findings(self) -> tuple[str, ...] | None:
        """Those of its data, in their order."""
        positives = _mapping(_mapping(self.results.get("data")).get("positives"))
        return tuple(_mapping(positives.get("train"))) or None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
