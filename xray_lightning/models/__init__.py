"""Backbones, losses and the one LightningModule."""
