"""What operators see: metrics, logs, traces, and the requests of sibling processes."""
