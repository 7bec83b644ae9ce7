"""The model of a checkpoint, built again from the checkpoint alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xray_lightning.data.transforms import Normalize
from xray_lightning.errors import UserError, one_line
from xray_lightning.models.backbones import build_backbone

# What a recipe may say of the backbone: nothing that would read or download other weights.
MODEL_KEYS = frozenset({"arch", "hidden", "dropout"})
# Parts of the classifier that only training needs.
OF_TRAINING = ("loss.", "augment.")
LONGEST = 300  # characters of torch's own list of what does not fit


class RestoredModel(nn.Module):
    """Normalisation and backbone of a checkpoint, as its classifier has them.

    Attributes:
        image_size: side of the images that it was trained on, in pixels.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        normalize: Normalize,
        image_size: int,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.normalize = backbone, normalize
        self.image_size = image_size
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self._layout)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, findings) of uint8 images (B, 1, S, S)."""
        pixels = self.normalize(images).contiguous(memory_format=self._layout)
        logits: Tensor = self.backbone(pixels)
        return logits


def restore(
    checkpoint: Mapping[str, Any], *, source: Path, channels_last: bool = True
) -> RestoredModel:
    """Build the model that a checkpoint describes, and load its weights, every one.

    Args:
        checkpoint: as `training.checkpoints.read_checkpoint` gives it.
        source: its file, for messages.
        channels_last: memory layout of convolutions, as the classifier's.

    Returns:
        The model on the CPU, in eval mode, in float32, with nothing to train.

    Raises:
        UserError: a recipe that is incomplete, or weights that are not this recipe's.
    """
    recipe = checkpoint["xray"]
    missing = [key for key in ("model", "normalize", "image_size") if key not in recipe]
    if missing:
        raise UserError(f"{source}: the checkpoint does not say its {', '.join(missing)}")
    size = recipe["image_size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"{source}: the checkpoint's image_size, {size}, is no size")
    try:
        normalize = Normalize(recipe["normalize"])
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    backbone = _backbone(recipe["model"], findings=len(recipe["findings"]), source=source)
    parts = nn.ModuleDict({"backbone": backbone, "normalize": normalize})
    _load(parts, checkpoint.get("state_dict"), source=source)
    model = RestoredModel(
        backbone=backbone, normalize=normalize, image_size=size, channels_last=channels_last
    )
    return model.float().eval().requires_grad_(False)


def _backbone(recipe: Any, *, findings: int, source: Path) -> nn.Module:
    """The backbone without memory for its weights: the checkpoint's take their place."""
    if not isinstance(recipe, Mapping) or not recipe.keys() <= MODEL_KEYS:
        known = ", ".join(sorted(MODEL_KEYS))
        raise UserError(f"{source}: the checkpoint's model is not described by {known}")
    try:
        with torch.device("meta"):
            return build_backbone(**recipe, findings=findings)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: no model can be built from {dict(recipe)}: {error}") from error


def _load(parts: nn.Module, state: Any, *, source: Path) -> None:
    if not isinstance(state, Mapping):
        raise UserError(f"{source}: the checkpoint holds no weights")
    kept = {key: value for key, value in state.items() if not str(key).startswith(OF_TRAINING)}
    try:
        parts.load_state_dict(kept, strict=True, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:  # all that torch raises here
        text = one_line(error)
        text = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
        raise UserError(
            f"{source}: the weights do not fit the checkpoint's model: {text}"
        ) from error
