"""The process in which Beam runs, and which starts Beam's workers. `beam.BeamProcess` starts it.

It is told Beam's options, and then one pipeline after another. It answers with JSON in lines: [outcome, detail].
"""

from __future__ import annotations

import json
import os
import re
import threading
import traceback
from typing import Any

from sela_tf.tasks.child_group import end_with_parent, messages

DONE, REFUSED, FAILED, LOST = "done", "refused", "failed", "lost"
"""Outcomes: a pipeline was run; Beam refuses the options (detail: why); a pipeline has failed (detail: how); a worker was lost (detail: its
status, as a shell gives it)."""


def main() -> None:
    """Runs the pipelines that the parent asks for, until the parent ends this process."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    # What Beam and its workers print are no answers.
    os.dup2(2, 1)

    def answer(outcome: str, detail: Any = None) -> None:
        print(json.dumps([outcome, detail]), file=answers, flush=True)

    def thread_failed(arguments: threading.ExceptHookArgs) -> None:
        """Tells the parent of a worker that was lost. Beam would wait for it for ever: only the thread that started the worker fails."""
        threading.__excepthook__(arguments)
        if arguments.thread is not None and arguments.thread.name == "run_worker":
            status = re.search(r"return code (-?\d+)", str(arguments.exc_value))
            answer(LOST, int(status[1]) if status else 1)

    threading.excepthook = thread_failed
    asked = messages()
    arguments = next(asked)

    from sela_tf.tasks.beam_pipeline import check_arguments, run_pipeline

    why = check_arguments(arguments)
    answer(REFUSED if why else DONE, why)
    for pipeline in asked:
        try:
            run_pipeline(arguments, *pipeline)
        except Exception as error:
            traceback.print_exc()
            answer(FAILED, str(error))
        else:
            answer(DONE)


if __name__ == "__main__":
    main()
