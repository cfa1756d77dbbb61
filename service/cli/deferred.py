"""What each command runs, imported when it runs: help and completion are quick."""

from __future__ import annotations

import argparse


class Version(argparse.Action):
    """``classmith --version``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it and end."""
        from service.observability.telemetry import release

        print(f"{parser.prog} {release()}")
        parser.exit()


def create(asked: argparse.Namespace) -> int:
    """``classmith task create``."""
    from service.cli import tasks

    return tasks.create(asked)


def list_all(asked: argparse.Namespace) -> int:
    """``classmith task list``."""
    from service.cli import tasks

    return tasks.list_all(asked)


def show(asked: argparse.Namespace) -> int:
    """``classmith task show``."""
    from service.cli import tasks

    return tasks.show(asked)


def delete(asked: argparse.Namespace) -> int:
    """``classmith task delete``."""
    from service.cli import tasks

    return tasks.delete(asked)


def explain(asked: argparse.Namespace) -> int:
    """``classmith task explain``."""
    from service.cli import tasks

    return tasks.explain(asked)


def export(asked: argparse.Namespace) -> int:
    """``classmith task export``."""
    from service.cli import tasks

    return tasks.export(asked)


def predict(asked: argparse.Namespace) -> int:
    """``classmith predict``."""
    from service.cli import tasks

    return tasks.predict(asked)


def bench(asked: argparse.Namespace) -> int:
    """``classmith bench``."""
    from service.cli import bench

    return bench.bench(asked)


def serve(asked: argparse.Namespace) -> int:
    """``classmith serve``."""
    from service.cli import processes

    return processes.serve(asked)


def worker(asked: argparse.Namespace) -> int:
    """``classmith worker``."""
    from service.cli import processes

    return processes.work(asked)


def recover(asked: argparse.Namespace) -> int:
    """``classmith recover``."""
    from service.cli import processes

    return processes.recover(asked)


def meta_models(asked: argparse.Namespace) -> int:
    """``classmith metamodel list``."""
    from service.cli import meta_models

    return meta_models.list_all(asked)


def verify(asked: argparse.Namespace) -> int:
    """``classmith metamodel verify``."""
    from service.cli import meta_models

    return meta_models.verify(asked)


def completion(asked: argparse.Namespace) -> int:
    """``classmith completion``."""
    from service.cli import completion

    return completion.show(asked)
