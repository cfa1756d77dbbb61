"""What a task and a classifier are. No environment, no socket but for an encoder. torch: nn, methods, export."""
