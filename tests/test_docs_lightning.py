"""The page docs/lightning.md: its program does what the page says."""

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY


def test_the_page_of_lightning_without_hydra_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (REPOSITORY / "docs" / "lightning.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    program = program.replace("Trainer(", "Trainer(accelerator='cpu', enable_progress_bar=False, ")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(program, "docs/lightning.md", "exec"), names)
    printed = capsys.readouterr().out
    trainer, data = names["trainer"], names["data"]
    for stage, split in ((trainer.validate, "val"), (trainer.test, "test")):
        (scores,) = stage(names["loaded"], datamodule=data, verbose=False)
        assert 0 <= scores[f"{split}/auroc_macro"] <= 1
        assert scores[f"{split}/loss"] > 0
        assert str([scores]) in printed  # the loaded classifier scores as the one that was saved
    batches = trainer.predict(names["loaded"], datamodule=data)
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert rows == list(range(len(data.table("test"))))
    assert [name for batch in batches for name in batch.images] == [*data.table("test")["image"]]
