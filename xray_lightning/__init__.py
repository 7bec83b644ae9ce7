"""Multi-label chest X-ray diagnosis with PyTorch Lightning and Hydra."""
