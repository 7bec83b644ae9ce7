"""Stand-ins for srun, sbatch, scontrol and squeue: a job's variables around it, without a Slurm.

`sbatch` runs a script here, again after each `scontrol requeue`, which ends it as Slurm does: its
tasks get SIGTERM, then SIGKILL. With `--parsable` it does so in the background, and `squeue` names
the job to its end. `srun` starts as many tasks as STAND_IN_TASKS says, and with
`--kill-on-bad-exit=1` kills the others once one has failed. `scontrol show` prints the file
`shown`; the file `refuses`, where there is one, is why scontrol fails. All calls of scontrol are
lines of the file `asked`.
"""

import os
import sys
from pathlib import Path

from conftest import REPOSITORY

SBATCH = """
import os, signal, subprocess, sys
from contextlib import suppress
from pathlib import Path

here = Path(__file__).parent
if "--parsable" in sys.argv:
    number = str(int(os.environ["STAND_IN_FIRST"]) + len([*here.glob("job-*")]))
    (here / f"job-{number}").write_text(sys.stdin.read())
    (here / f"queued-{number}").touch()
    options = dict(arg.split("=", 1) for arg in sys.argv if "=" in arg)
    with open(options["--output"], "a") as stream:
        subprocess.Popen(
            [__file__, str(here / f"job-{number}")], env=os.environ | {"STAND_IN_JOB": number},
            stdout=stream, stderr=stream, start_new_session=True,
        )
    print(number)
    sys.exit()
number = os.environ.get("STAND_IN_JOB", os.environ["STAND_IN_FIRST"])
job, restarts = {"SLURM_JOB_ID": number, "SLURM_NTASKS": os.environ["STAND_IN_TASKS"]}, 0
requeue = here / f"requeue-{number}"
while True:
    again = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    batch = subprocess.Popen(
        ["bash", *sys.argv[1:]], env=os.environ | job | again, start_new_session=True
    )
    while True:
        try:
            exit_code = batch.wait(timeout=0.1)
            break
        except subprocess.TimeoutExpired:
            if requeue.exists():
                os.killpg(batch.pid, signal.SIGTERM)
    if not requeue.exists():
        (here / f"queued-{number}").unlink(missing_ok=True)
        sys.exit(exit_code)
    requeue.unlink()
    with suppress(ProcessLookupError):
        os.killpg(batch.pid, signal.SIGKILL)  # what SIGTERM has not ended
    restarts += 1
"""

SRUN = """
import os, subprocess, sys, time

command = [one for one in sys.argv[1:] if not one.startswith("--kill-on-bad-exit")]
tasks = os.environ["STAND_IN_TASKS"]
step = {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_TASKS_PER_NODE": tasks,
    "SLURM_STEP_NODELIST": "node[1-9]", "SLURM_NODEID": "0",
}
started = [
    subprocess.Popen(
        command, env=os.environ | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    )
    for rank in range(int(tasks))
]
ended = 0
while any(task.poll() is None for task in started):
    ended = ended or next((task.returncode for task in started if task.poll()), 0)
    for task in started if ended and "--kill-on-bad-exit=1" in sys.argv else ():
        task.kill()
    time.sleep(0.1)
sys.exit(ended or max(task.returncode for task in started))
"""

SCONTROL = """
import sys
from pathlib import Path

here, asked = Path(__file__).parent, sys.argv[1:]
with (here / "asked").open("a") as stream:
    stream.write(" ".join(asked) + "\\n")
if (here / "refuses").exists():
    sys.exit((here / "refuses").read_text())
if asked[0] == "requeue":
    (here / f"requeue-{asked[1]}").touch()
else:
    print((here / "shown").read_text())
"""

SQUEUE = """
from pathlib import Path

for path in Path(__file__).parent.glob("queued-*"):
    print(path.name.removeprefix("queued-"))
"""


# The first job's number: not the same in tests that run at the same time, whose tasks would meet at
# the same port.
JOB = 10 * os.getpid()
EXAMPLE = REPOSITORY / "docs" / "examples" / "train.sbatch"


def beside_train_py(folder: Path, **modules: str) -> dict[str, str]:
    """Make a folder in which the example can be submitted, with modules of this code in it.

    Returns:
        What the environment needs to have them found.
    """
    folder.mkdir(exist_ok=True)
    for name in ("train.py", "conf"):
        (folder / name).symlink_to(REPOSITORY / name)
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}


def stand_ins(folder: Path, *, tasks: int = 1) -> dict[str, str]:
    """Make the commands in a folder; returns what the environment needs to have them found."""
    folder.mkdir(exist_ok=True)
    codes = {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "squeue": SQUEUE}
    for name, code in codes.items():
        (folder / name).write_text(f"#!{sys.executable}\n{code}")
        (folder / name).chmod(0o755)
    bin_folder = Path(sys.executable).parent
    path = os.pathsep.join(map(str, (folder, bin_folder, os.environ["PATH"])))
    return {"PATH": path, "STAND_IN_TASKS": str(tasks), "STAND_IN_FIRST": str(JOB)}


def asked(folder: Path) -> list[str]:
    """What scontrol was asked."""
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []
