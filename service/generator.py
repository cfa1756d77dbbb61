"""Moved by the lead to models/generator.py (training.evaluate needs it too): edit it there, import it from there."""

from models.generator import OnnxGenerator

__all__ = ["OnnxGenerator"]
