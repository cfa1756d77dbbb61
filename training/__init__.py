"""The offline half: data, episodes, optimisers and evaluation that make meta-models (PyTorch)."""
