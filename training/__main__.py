"""``python -m training`` is the ``training`` command."""

from training.cli import main

raise SystemExit(main())
