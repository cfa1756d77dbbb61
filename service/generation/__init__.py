"""Generation: a task is brought to its end once, here or by a worker."""
