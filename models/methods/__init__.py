"""The methods: peers, one file each, none importing another (PyTorch)."""
