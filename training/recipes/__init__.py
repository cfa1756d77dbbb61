"""One explicit training loop per method; none imports another."""
