"""What a task and a classifier are. Opens no socket and reads no environment; torch only below ``nn`` and ``methods``."""
