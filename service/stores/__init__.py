"""Where tasks and bundles are kept: ``sqlite`` (embedded: one file and a folder) and ``redis`` (shared by machines)."""
