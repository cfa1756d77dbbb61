"""What a task and a classifier are. Opens no socket, reads no environment. torch: nn, methods, export."""
