"""Reader of ChestMNIST, as `xray data download chestmnist` leaves it: a table in NIH's layout.

Yang et al., "MedMNIST v2", Scientific Data 2023. Its files name no patients, and its split is a
CSV beside the table.
"""

from collections.abc import Sequence
from pathlib import Path

from xray_lightning.data.faults import Faults
from xray_lightning.data.sources import Listing, Release
from xray_lightning.data.sources.nih import Nih

TABLE, SPLIT = "Data_Entry_chestmnist.csv", "split.csv"


class ChestMnist(Nih):
    """ChestMNIST of MedMNIST v2."""

    looked_for = ""
    rank = 0

    def tables(self, root: Path) -> Sequence[Path]:
        tables = super().tables(root)
        return tables if tables and tables[0].name == TABLE else ()

    def describe(self, root: Path, listing: Listing, faults: Faults) -> Release:
        return Release("ChestMNIST (MedMNIST v2)", (TABLE,))


SOURCE = ChestMnist()
