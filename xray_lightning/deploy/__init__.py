"""Deployment of a trained model: prediction, export, saliency and model card."""
