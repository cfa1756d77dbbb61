"""The processes that serve HTTP, and how they speak it."""
