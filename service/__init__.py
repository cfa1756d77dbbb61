"""The online half: an HTTP service that makes classifiers once and answers predictions fast (no torch)."""
