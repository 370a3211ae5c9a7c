"""The tasks: one module each, and the transformers' parts."""

import functools

from experiments.tasks.fashion import Fashion
from experiments.tasks.language import Language
from experiments.tasks.task import Task
from experiments.tasks.translation import Translation

TASKS = {cls.name: cls for cls in (Fashion, Language, Translation)}


@functools.cache
def task(name: str) -> Task:
    """The task of this name, with its data; loaded once in a process."""
    return TASKS[name]()
