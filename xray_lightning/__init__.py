"""Multi-label chest X-ray diagnosis with PyTorch Lightning and Hydra.

from xray_lightning import load_model

found = load_model("runs/first/checkpoints/best.ckpt").predict(["a.png", "b.png"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xray_lightning.deploy.model import Model, Prediction, Predictions, load_model

__all__ = ["Model", "Prediction", "Predictions", "load_model"]


def __getattr__(name: str) -> Any:
    """Import what is public at its first use: most commands need no torch."""
    if name in __all__:
        from xray_lightning.deploy import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
