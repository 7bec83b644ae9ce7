"""A server that runs train.py from its first line, without the seconds that importing torch takes.

It imports everything once, then forks a process for each call that it is told, which also leaves
out clearing it all away at the end.
"""

import atexit
import gc
import json
import os
import runpy
import sys
import traceback

import hydra  # noqa: F401

import xray_lightning.training.fit  # noqa: F401


def run(script: str, arguments: list[str], folder: str, env: dict[str, str]) -> None:
    """Run it in this process, with its output in files beside the folder, and leave."""
    os.chdir(folder)
    os.environ.update(env)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [script, *arguments]
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - as Python does at the end of a process
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - to the test
