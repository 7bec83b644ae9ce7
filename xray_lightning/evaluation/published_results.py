"""Figures that others have published, each with its source, for showing beside our own."""

from typing import NamedTuple

PAPER = (
    "Cruz Romero et al., Optimized Learning for X-Ray Image Classification for Multi-Class "
    "Disease Diagnoses with Accelerated Computing Strategies"
)
PAPER_CONDITIONS = "1000 ChestX-ray14 images, 25 epochs, batch 32, on Colab (Tesla T4)"
# The AI-for-Medicine test.csv, which the paper tested on, has 769 positives among the 5,880 labels
# of its 420 images: this is what always answering "no finding" scores there.
PAPER_ALWAYS_NEGATIVE = 1 - 769 / 5880


class PaperRow(NamedTuple):
    """One row of the paper's study.

    Attributes:
        strategy: as the paper names it.
        accuracy: correct labels over all labels of the test set, at threshold 0.5, in 0..1.
        minutes: training time in minutes.
        accelerator: what the row ran on, "cpu" or "cuda".
    """

    row: int
    model: str
    strategy: str
    accelerator: str
    accuracy: float
    minutes: float


_ALL_SWITCHES = "CUDA + MPI + mixed precision + LR scheduler"
PAPER_ROWS: tuple[PaperRow, ...] = (
    PaperRow(1, "ResNet18", "no acceleration (CPU)", "cpu", 0.8612, 150.38),
    PaperRow(2, "ResNet18", "CUDA", "cuda", 0.8626, 10.19),
    PaperRow(3, "ResNet18", "CUDA + MPI", "cuda", 0.8629, 10.44),
    PaperRow(4, "ResNet18", _ALL_SWITCHES, "cuda", 0.8634, 10.45),
    PaperRow(5, "ResNet50 + FC layers", _ALL_SWITCHES, "cuda", 0.8692, 12.13),
)


class PublishedAuroc(NamedTuple):
    """A macro AUROC over the 14 findings of ChestX-ray14 on NIH's own lists, as published.

    Those of random splits are not comparable with these: with the same code, they differ by about
    0.03.

    Attributes:
        source: where the figure was seen.
    """

    system: str
    auroc: float
    source: str


PUBLISHED_AUROCS: tuple[PublishedAuroc, ...] = (
    PublishedAuroc("Wang 2017, ResNet50", 0.745, "AE-CNN comparison table"),
    PublishedAuroc("AE-CNN", 0.824, "AE-CNN comparison table"),
    PublishedAuroc("gathierry CheXNet-PyTorch", 0.814, "its README"),
)
OFFICIAL_TEST_IMAGES = 25_596  # NIH's test_list.txt
