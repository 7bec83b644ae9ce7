"""Resume of a run folder under its own configuration, safely even if it is somebody else's.

Its checkpoint is loaded with `weights_only`. Its settings are checked here: those that would
instantiate foreign classes, start programs or write elsewhere must be repeated on the command line.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from xray_lightning.errors import UserError, printable
from xray_lightning.files import remove_leftovers, write_atomically
from xray_lightning.runs.results_json import FILE_NAME as RESULTS
from xray_lightning.runs.results_json import FREE_KEYS, differences, finite, flat
from xray_lightning.runs.run_folder import DamagedResultsError, read_run

HYDRA = ".hydra"
CONFIGURATION = ("config.yaml", "hydra.yaml", "overrides.yaml")  # below HYDRA
# Keys passed to mpirun: it runs the agent as a command, and hosts get the environment.
LAUNCHING = ("strategy.agent", "strategy.hosts", "strategy.mpirun_args")
# Groups whose objects write files, and the keys that name their places.
WRITERS = ("callbacks", "logger", "trainer")
PLACES = ("default_root_dir", "dirpath", "log_dir", "path", "root_dir", "save_dir")
# Keys of loggers that name the server or account to which a run is reported.
RECEIVERS = ("artifact_location", "base_url", "entity", "tracking_uri")
AGAIN = "give it on this command line too if you trust it"


def refuse_other_configuration(
    folder: Path,
    *,
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    given: Collection[str] = (),
) -> None:
    """Refuse to go on with a run under another configuration.

    A key that the project has got since the run was started, and that nobody sets, is no change:
    its default leaves everything as it was.

    Args:
        given: keys and groups that this command line sets.

    Raises:
        UserError: every difference that changes what is computed.
    """
    free = (*FREE_KEYS, *(key for key in flat(now) if _is_newer(key, was=was, given=given)))
    changed = [
        line
        for line in differences(_with_moved_classes(was, now=now), finite(now))
        if not any(line.startswith((f"{key}.", f"{key}:")) for key in free)
    ]
    if changed:
        raise UserError(
            f"resume={folder} with another configuration ({'; '.join(changed)}); undo the change, "
            "or start a new run"
        )


def _is_newer(key: str, *, was: Mapping[str, Any], given: Collection[str]) -> bool:
    """Whether a configuration had no such key, nor null in place of its group, and none is set."""
    if "experiment" in given or any(f"{key}.".startswith(f"{one}.") for one in given):
        return False
    here: Any = was
    for part in key.split("."):
        if not isinstance(here, Mapping):
            return False
        if part not in here:
            return True
        here = here[part]
    return False


def _with_moved_classes(was: Any, *, now: Any) -> Any:
    """An earlier configuration with each `_target_` replaced by today's if the class names agree.

    So a run stays resumable after a class has moved to another module; a class of another name
    remains a difference.
    """
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return was
    moved = {key: _with_moved_classes(value, now=now.get(key)) for key, value in was.items()}
    names = [str(config.get("_target_")).rpartition(".")[2] for config in (was, now)]
    if "_target_" in was and names[0] == names[1]:
        moved["_target_"] = now["_target_"]
    return moved


def refuse_links_outside(folder: Path) -> None:
    """Refuse a run folder in which a link leads to a file or folder elsewhere.

    Raises:
        UserError: there is one; the message names the first.
    """
    root = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UserError(
                f"resume={folder}: {printable(str(path.relative_to(folder)))} is a link to a place "
                "outside of the folder; replace it by what it points to"
            )


def refuse_foreign_settings(
    config: Mapping[str, Any], *, folder: Path, targets: Collection[str], given: Collection[str]
) -> None:
    """Refuse settings that only the command line may ask for, not a run folder's overrides.

    Args:
        config: the resolved configuration.
        folder: the run folder.
        targets: classes and functions that the YAML files of `conf/` (or --config-dir) name.
        given: keys that the command line sets.

    Raises:
        UserError: the configuration instantiates anything else, passes arguments to mpirun, or
            writes outside of the folder or to a server, and the command line does not say so.
    """
    for key, value in _leaves(config):
        if any(key == name or key.startswith(f"{name}.") for name in given):
            continue
        last = key.rpartition(".")[2]
        if last == "_target_" and value not in targets:
            asked = f"calls {printable(str(value))}, which is not of this project's configuration"
        elif key.startswith(LAUNCHING) and value:
            asked = f"is {printable(str(value))}, which would be passed to mpirun"
        elif key.startswith("logger.") and last in RECEIVERS and value:
            asked = f"is {printable(str(value))}, which would be told of the run"
        elif key.startswith(WRITERS) and _leads_outside(value, folder, place=last in PLACES):
            asked = f"is {printable(str(value))}, which is outside of the folder"
        else:
            continue
        raise UserError(f"resume={folder}: its {printable(key)} {asked}; {AGAIN}")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each scalar in nested mappings and lists with its dotted key; list items have the list's."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, key)
    else:
        yield key, value


def _leads_outside(value: Any, folder: Path, *, place: bool) -> bool:
    """Whether a text is a path outside `folder`; without `place`, only if absolute or with ".."."""
    if not isinstance(value, str):
        return False
    path = Path(value).expanduser()
    if ".." in path.parts:
        return True
    return (place or path.is_absolute()) and not path.resolve().is_relative_to(folder.resolve())


class RunFiles:
    """Copy of a run's record and configuration, from which a refused resume restores them.

    Raises:
        UserError: results.json is not that of a run.
    """

    def __init__(self, folder: Path) -> None:
        try:
            read_run(folder)
        except DamagedResultsError as error:
            raise UserError(
                f"resume={folder}: {RESULTS} cannot be used: {error}; start a new run"
            ) from error
        for place in (folder, folder / HYDRA, folder / "checkpoints"):
            if place.is_dir():
                remove_leftovers(place)
        self._folder = folder
        self._before: dict[Path, bytes] = {}
        for path in (folder / RESULTS, *(folder / HYDRA / name for name in CONFIGURATION)):
            with suppress(OSError):
                self._before[path] = path.read_bytes()

    def write_configuration(self, texts: Mapping[str, str]) -> None:
        """Write the configuration of the resumed run: texts by file name."""
        for name, text in texts.items():
            write_atomically(self._folder / HYDRA / name, text)

    def restore(self) -> None:
        """Write the record and the configuration back as they were before the resume."""
        for path, content in self._before.items():
            with suppress(OSError):  # the reason for the refusal must still be reported
                write_atomically(path, content)
