"""Thin HTTP: routes, bodies, statuses. What the service does is in ``service.tasks``, which knows no HTTP."""
