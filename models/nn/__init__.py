"""Network blocks shared by the methods (PyTorch; the service never imports this)."""
