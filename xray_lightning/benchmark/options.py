"""What `xray bench` is asked for, checked before anything heavy is imported."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xray_lightning.benchmark.arms import PRECISIONS, refuse_unknown
from xray_lightning.errors import UserError, check_whole


@dataclass(frozen=True)
class Options:
    """The command's options; its help says what each is."""

    data: Path
    command: str
    arms: Sequence[str] = ()
    model: str = "resnet18"
    image_size: int = 224
    batch_size: int = 32
    precisions: Sequence[str] = PRECISIONS
    accelerator: str = "auto"
    threads: int | None = None
    repeats: int = 5
    steps: int | None = None
    images: int | None = None
    json: Path | None = None

    def check(self) -> None:
        """Refuse what can be refused without the data.

        Raises:
            UserError: the first option that is wrong.
        """
        refuse_unknown(self.arms)
        if set(self.precisions) - set(PRECISIONS) or not self.precisions:
            raise UserError(
                f"--precision {','.join(self.precisions)}: choose from {','.join(PRECISIONS)}"
            )
        check_whole("--image-size", self.image_size, least=32)
        check_whole("--batch-size", self.batch_size, least=1)
        check_whole("--repeats", self.repeats, least=1)
        for key in ("threads", "steps", "images"):
            if getattr(self, key) is not None:
                check_whole(f"--{key}", getattr(self, key), least=1)
        folder = Path() if self.json is None else self.json.parent
        if self.json is not None and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise UserError(f"--json {self.json}: its folder is not there or cannot be written")
