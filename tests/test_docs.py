"""The documentation: its links resolve, its commands exist, its examples run."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, Train
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf
from typer import Typer
from typer.main import get_command

from benchmarks import side_by_side
from xray_lightning.cli import main as cli

CONF = REPOSITORY / "conf"
README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"
PAGES = sorted([README, REPOSITORY / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
MOST_LINES = 220  # of the README: what a newcomer needs

# mpirun's, those of the benchmark, and Slurm's.
OTHERS_OPTIONS = {"--help", "--oversubscribe", "--arms"} | {
    *("--gpus-per-node", "--kill-on-bad-exit=1", "--no-requeue", "--ntasks-per-node"),
    *("--signal", "--signal=USR1@120"),
}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`]+)`")
KEY = re.compile(r"\+?([a-z_]+(?:\.[a-z_]+)*)=(\S+)")


@dataclass(frozen=True)
class Command:
    """A command line of a page, without what stands before its program."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def lines_of_code(text: str) -> Iterator[str]:
    """Lines of indented blocks, continued lines as one, and spans of inline code."""
    text = FENCE.sub("", text)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.startswith("    "):
            yield line.strip()
        else:
            yield from SPAN.findall(line)


def commands(program: str) -> list[Command]:
    """Each command line of the pages that runs this program, from the program on."""
    found = {}
    for page in PAGES:
        for line in lines_of_code(page.read_text(encoding="utf-8")):
            if re.match(rf"(\S+ )*?{re.escape(program)}( |$)", line) is None:
                continue
            words = shlex.split(line, comments=True)
            words += re.findall(r"--[a-z][\w-]+", line.partition("#")[2])  # "# or --no-decode"
            if program not in words or any(word[0] == "[" for word in words):
                continue  # named in passing, or the pattern of a command line
            words = words[words.index(program) + 1 :]
            command = Command(page.name, tuple(words))
            found[str(command)] = command
    return list(found.values())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def composed(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=overrides, return_hydra_config=True)
    GlobalHydra.instance().clear()
    return cfg


def swept(override: Override) -> list[str]:
    """What one argument of `-m` stands for, each an override of its own."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    value = override.value()
    key = override.get_key_element()
    if isinstance(value, IntervalSweep):  # of a search
        return [f"{key}={value.start}", f"{key}={value.end}"]
    if isinstance(value, Glob):
        options = [path.stem for path in (CONF / key).glob("*.yaml")]
        chosen = value.filter(options)
        assert chosen, f"{override.input_line} matches nothing"
        return [f"{key}={option}" for option in chosen]
    return [f"{key}={choice}" for choice in override.sweep_string_iterator()]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_readme_says_once_what_this_is_not() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("This is research software, not a medical device.") == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
        # MkDocs publishes what lies below docs/ alone.
        assert page == README or DOCS not in page.parents or DOCS in target.parents, link


@pytest.mark.parametrize("command", commands("train.py"), ids=str)
def test_every_train_command_composes(command: Command, tmp_path: Path) -> None:
    write_examples(tmp_path)  # docs/extending.md has commands that choose them
    search = f"hydra.searchpath=[file://{tmp_path}/conf]"
    keys = [word for word in command.words if not word.startswith("-")]
    assert set(command.words) - set(keys) <= {"-m", "--help"}
    parsed = OverridesParser.create().parse_overrides(keys)
    choices = [swept(override) for override in parsed]
    if "-m" not in command.words:
        assert all(not override.is_sweep_override() for override in parsed)
    for number in range(max(map(len, choices), default=1)):
        composed([search, *(options[number % len(options)] for options in choices)])


@cache
def configurations() -> list[DictConfig]:
    """Configurations that have every key between them."""
    given = (
        *([], ["strategy=ddp"], ["strategy=mpi"], ["data=csv"], ["scheduler=cosine"]),
        ["model=timm"],
        ["hydra/sweeper=optuna", "hydra/sweeper/pruner=median"],
    )
    return [composed(overrides) for overrides in given]


# Without the page on plain Lightning, whose `name=value` are arguments of Python calls.
HYDRA_PAGES = [page for page in PAGES if page.name != "lightning.md"]


@pytest.mark.parametrize("page", HYDRA_PAGES, ids=lambda page: page.name)
def test_every_key_and_option_named_exists(page: Path) -> None:
    for span in lines_of_code(page.read_text(encoding="utf-8")):
        named = KEY.fullmatch(span.strip("'"))
        if named is None or span.startswith("+"):
            continue
        key, value = named.groups()
        assert any(key in has(cfg) for cfg in configurations()), span
        if (CONF / key).is_dir():
            assert all((CONF / key / f"{one}.yaml").exists() for one in value.split(",")), span


def has(cfg: DictConfig) -> set[str]:
    """Every key of a configuration, with dots, and its groups."""

    def below(node: object, prefix: str) -> Iterator[str]:
        if isinstance(node, dict):
            for name, value in node.items():
                yield f"{prefix}{name}"
                yield from below(value, f"{prefix}{name}.")

    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    return groups | set(below(OmegaConf.to_container(cfg, resolve=False), ""))


def test_the_table_of_switches_has_every_option() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", README.read_text(encoding="utf-8"), re.M))
    for group in (path for path in CONF.iterdir() if path.is_dir()):
        options = {path.stem for path in group.glob("*.yaml")}
        if options == {"default"}:
            continue  # nothing to choose
        named = set(SPAN.findall(rows[group.name]))
        assert options - named <= {name for name in options if name.startswith("paper_")}
        assert named <= options


@pytest.mark.parametrize("command", commands("xray"), ids=str)
def test_every_xray_command_and_option_exists(command: Command) -> None:
    current: Any = get_command(cli.app)
    words = list(command.words)
    while hasattr(current, "commands") and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in current.commands, f"no command {name}"
        current = current.commands[name]
    known = {"--help", *(name for p in current.params for name in (*p.opts, *p.secondary_opts))}
    given = {word.split("=", 1)[0] for word in words if word.startswith("-")}
    assert given <= known


@pytest.mark.parametrize("command", commands("benchmarks.side_by_side"), ids=str)
def test_every_option_of_the_benchmark_exists(command: Command) -> None:
    app = Typer()
    app.command()(side_by_side.main)
    known = {"--help", *(name for p in get_command(app).params for name in p.opts)}
    assert {word for word in command.words if word.startswith("--")} <= known


def xray_options() -> set[str]:
    """Every option of every `xray` command."""

    def below(current: Any) -> Iterator[str]:
        for parameter in current.params:
            yield from (*parameter.opts, *parameter.secondary_opts)
        for command in getattr(current, "commands", {}).values():
            yield from below(command)

    return set(below(get_command(cli.app)))


def test_every_option_named_in_passing_is_one_of_xray() -> None:
    known = xray_options() | OTHERS_OPTIONS
    for page in PAGES:
        for line in lines_of_code(page.read_text(encoding="utf-8")):
            if line.startswith("--"):
                assert line.split()[0] in known, f"{page.name}: {line}"


@pytest.mark.parametrize("command", commands("bash"), ids=str)
def test_every_script_named_exists(command: Command) -> None:
    assert (REPOSITORY / command.words[0]).is_file()


def examples() -> dict[str, str]:
    """The files of docs/extending.md by their names, which stand in their first lines."""
    blocks = FENCE.findall((DOCS / "extending.md").read_text(encoding="utf-8"))
    named = {code.split("\n", 1)[0].removeprefix("# "): code for _, code in blocks}
    assert all(Path(name).suffix in (".py", ".yaml") for name in named)
    return named


def write_examples(folder: Path) -> None:
    for name, code in examples().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")


@pytest.mark.slow
def test_the_examples_of_a_backbone_and_a_loss_train(train: Train, tmp_path: Path) -> None:
    write_examples(tmp_path / "mine")
    ended = train(
        f"hydra.searchpath=[file://{tmp_path}/mine/conf]",
        "model=resnet34_mlp",
        "loss=smoothed_bce",
        "loss.smoothing=0.05",
        env={"PYTHONPATH": str(tmp_path / "mine")},
    )
    assert ended.exit_code == 0, ended.stderr
    (results,) = ended.results
    assert results["status"] == "finished"
    assert results["config"]["model"]["arch"] == "resnet34"
    assert results["config"]["loss"]["_target_"] == "smoothed_loss.SmoothedCrossEntropy"


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = set(re.findall(r"[\w/]+\.md", str(nav)))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_the_api_pages_name_what_exists() -> None:
    for page in (DOCS / "api").glob("*.md"):
        (module,) = re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.M)
        path = REPOSITORY / module.replace(".", "/")
        assert (path / "__init__.py").is_file() or path.with_suffix(".py").is_file(), module
