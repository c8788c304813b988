"""`aqa submit slurm`: an extraction or trainings as an array of parts, and a job behind it that ends their work.

    array 1-n, `aqa extract … --shard i/n`  ─▶  when all have ended: `aqa finalise STORE`, and what is missing again
    array 1-n, `aqa train … --shard i/n`    ─▶  when all have ended: `aqa finalise FOLDER`, and what is missing again

Nothing here decides what is done. A part that runs again finds in the store or the run folder what it has, so that a
part which was pre-empted, killed or lost is submitted again by the job at the end; `--requeue` is asked for as well,
but is not relied on: where pre-emption cancels, it does nothing. sbatch's options:
https://slurm.schedmd.com/sbatch.html.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from aqa_shared.errors import EnvironmentFault
from aqa_shared.options import Option, Several
from aqa_shared.records import Record
from aqa_shared.settings import as_toml, gathered, valid

ENVIRONMENT = "AQA_SLURM_"
WORK, NODE, QUEUE = "What is submitted", "What a part gets", "Where it is queued"
"""Headings of the options."""
WARNING = 60
"""Seconds before its time limit at which a part is told to finish what it can (SIGUSR1)."""

_LINE = re.compile(r"[^\n\r]*")
_END = "END-OF-OPTIONS"


class Slurm(Record):
    """How work is cut and what each part of it asks the cluster for."""

    parts: Annotated[int, Option(WORK, "Tasks of the array; parts are about equal in duration.")] = Field(
        default=8, ge=1, le=10000
    )
    at_once: Annotated[int | None, Option(WORK, "At most so many parts at a time.", default="all")] = Field(
        default=None, ge=1
    )
    again: Annotated[
        int, Option(WORK, "How often parts that are missing in the end are submitted again.", metavar="<int>")
    ] = Field(default=3, ge=0, le=100)
    name: Annotated[str, Option(WORK, "Name of the jobs.")] = "aqa"
    logs: Annotated[str, Option(WORK, "Folder of what the jobs print.", metavar="FOLDER")] = "slurm-logs"
    gpus: Annotated[int, Option(NODE, "GPUs; 0 for none.")] = Field(default=1, ge=0)
    cpus: Annotated[int, Option(NODE, "Processor cores.")] = Field(default=8, ge=1)
    memory: Annotated[
        str, Option(NODE, "Memory, as 32G; empty omits --mem, for sites where it follows from the GPUs.")
    ] = "32G"
    time: Annotated[str, Option(NODE, "Time limit, as 4:00:00 or 1-00:00:00.")] = "4:00:00"
    launch: Annotated[
        str,
        Option(
            NODE,
            "What starts aqa on a node, as `apptainer exec --nv aqa.sif aqa`.",
            default="aqa of this environment",
        ),
    ] = ""
    setup: Annotated[
        Several, Option(NODE, "Shell lines to run first, with commas between, as `module load cuda`.")
    ] = ()
    partition: Annotated[str, Option(QUEUE, "Partition.", default="the site's")] = ""
    account: Annotated[str, Option(QUEUE, "Account.", default="yours")] = ""
    qos: Annotated[str, Option(QUEUE, "Quality of service.", default="the site's")] = ""
    directives: Annotated[
        Several,
        Option(QUEUE, "Other options of sbatch, with commas between, as `--constraint=a100`."),
    ] = ()
    end_directives: Annotated[
        Several,
        Option(QUEUE, "The same for the job at the end, which needs no GPU, as `--partition=cpu`."),
    ] = ()

    @field_validator("time")
    @classmethod
    def _a_time(cls, value: str) -> str:
        if not re.fullmatch(r"\d+|\d+:\d{2}(:\d{2})?|\d+-\d{1,2}(:\d{2}){0,2}", value):
            raise ValueError("not a time limit of SLURM; write hours:minutes:seconds or days-hours:minutes:seconds")
        return value

    @field_validator("memory")
    @classmethod
    def _a_size(cls, value: str) -> str:
        if not re.fullmatch(r"(\d+[KMGT]?)?", value):
            raise ValueError("not a size of SLURM; write it as 32G, or empty")
        return value

    @field_validator("directives", "end_directives")
    @classmethod
    def _options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            if not re.fullmatch(r"--?[a-zA-Z][^\n\r]*", line):
                raise ValueError(f"{line!r} is not an option of sbatch; write it as --constraint=a100")
        return value

    @field_validator("name", "logs", "launch", "partition", "account", "qos", "setup")
    @classmethod
    def _one_line(cls, value: Any) -> Any:
        for text in [value] if isinstance(value, str) else value:
            if not _LINE.fullmatch(text):
                raise ValueError("must be one line")
        return value


def resolve(config: Path | None, flags: Mapping[str, Any]) -> Slurm:
    """Options over AQA_SLURM_* over a TOML file over defaults."""
    asked, variables = gathered(Slurm, ENVIRONMENT, config, flags)
    return valid(Slurm, asked, variables, fix="see aqa submit slurm --help")


def printed(settings: Slurm) -> str:
    """A file for --config."""
    return as_toml(settings.model_dump())


def array_script(settings: Slurm, command: Sequence[str], parts: Sequence[int], folder: Path) -> str:
    """The script of the array: one part of `command` (`extract …`, `train …`) a task, of which only `parts` run."""
    wanted = _ranges(parts) + (f"%{settings.at_once}" if settings.at_once else "")
    asked = {
        "array": wanted,
        "output": f"{settings.logs}/%x-%A_%a.log",
        "cpus-per-task": settings.cpus,
        "gres": f"gpu:{settings.gpus}" if settings.gpus else "",
        "mem": settings.memory,
        "time": settings.time,
        # B: to the process that `exec` has made of the shell.
        "signal": f"B:USR1@{WARNING}",
    }
    line = f'exec {_launch(settings)} {shlex.join(command)} --shard "$SLURM_ARRAY_TASK_ID/{settings.parts}"'
    return _script(settings, command[0], asked, ["--requeue", *settings.directives], folder, line)


def end_script(settings: Slurm, command: Sequence[str], out: str, array: str, folder: Path) -> str:
    """The script of the job behind the array: put together what is in `out`, then submit what is missing once more."""
    # The baselines of a table read the features that the trainings read.
    gathers = command[0] == "train"
    asked = {
        # Not afterok: a part with an unusable video ends with 3, and one that was cancelled with nothing.
        "dependency": f"afterany:{array}",
        "output": f"{settings.logs}/%x-%j.log",
        "cpus-per-task": 1,
        "mem": settings.memory if gathers else "4G" if settings.memory else "",
        "time": settings.time if gathers else "1:00:00",
    }
    launch = _launch(settings)
    line = f"{launch} finalise {shlex.quote(out)}"
    if settings.again == 0:
        line = f"exec {line}"
    else:
        left = settings.model_copy(update={"again": settings.again - 1})
        # By standard input, since lines of a shell have commas in them.
        line = (
            f"{line} && exit 0\n"
            # Where nothing is missing the job must not hide that the store or the tables could not be written.
            "code=$?\n"
            f"{launch} submit slurm --missing --config /dev/stdin -- {shlex.join(command)} <<'{_END}' || exit\n"
            f"{as_toml(left.model_dump(exclude_defaults=True))}{_END}\n"
            "exit $code"
        )
    return _script(settings, "end", asked, settings.end_directives, folder, line)


def submit(script: str, folder: Path, logs: str) -> str:
    """Hand a script to sbatch; returns the job's number. Raises EnvironmentFault with what sbatch says."""
    (folder / logs).mkdir(parents=True, exist_ok=True)  # SLURM drops the output of jobs whose folder is not there
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=script, capture_output=True, text=True, timeout=120, check=False
        )
    except FileNotFoundError:
        raise EnvironmentFault(
            "sbatch is not on this machine",
            fix="run this where jobs are submitted, or print the scripts with --dry-run",
        ) from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault("sbatch did not answer within 120 s", fix="see `sinfo`, then submit again") from None
    if done.returncode:
        raise EnvironmentFault(
            f"sbatch refused the job: {done.stderr.strip() or done.returncode}",
            fix="change what it names by an option of `aqa submit slurm`; --dry-run prints the script",
        )
    return done.stdout.strip().split(";")[0]


def _script(
    settings: Slurm, name: str, asked: Mapping[str, Any], directives: Sequence[str], folder: Path, command: str
) -> str:
    where = {"partition": settings.partition, "account": settings.account, "qos": settings.qos}
    named = {"job-name": f"{settings.name}-{name}", **where, **asked}
    lines = [f"--{key}={_plain(value)}" for key, value in named.items() if value != ""]
    # What the site needs comes last, since the last of two options counts.
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in (*lines, "--open-mode=append", f"--chdir={_plain(folder)}", *directives)),
            *(["", *settings.setup] if settings.setup else []),
            "",
            command,
            "",
        ]
    )


def _plain(value: Any) -> str:
    """A value of an #SBATCH line, which sbatch parts at spaces unless quoted."""
    text = str(value)
    return f'"{text}"' if re.search(r"\s", text) else text


def _launch(settings: Slurm) -> str:
    return settings.launch or f"{shlex.quote(sys.executable)} -m aqa_pipelines"


def _ranges(parts: Sequence[int]) -> str:
    """1, 2, 3, 7 → `1-3,7`."""
    found: list[list[int]] = []
    for i in sorted(parts):
        if found and i == found[-1][1] + 1:
            found[-1][1] = i
        else:
            found.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
