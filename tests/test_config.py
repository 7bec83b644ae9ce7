"""The configuration: every option of every group composes and builds what it names."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from torch import nn

from xray_lightning.data.sources.phantom.dataset import PhantomSpec
from xray_lightning.evaluation.judge import Judge
from xray_lightning.hardware import Speed, choose_precision
from xray_lightning.models.losses import FindingsLoss

CONF = REPOSITORY / "conf"
GROUP_FILES = sorted(path for path in CONF.glob("*/*.yaml"))
EXPERIMENTS = [path.stem for path in GROUP_FILES if path.parent.name == "experiment"]
PAPER = [name for name in EXPERIMENTS if name.startswith("paper_")]

Compose = Callable[..., DictConfig]


def options(group: str) -> list[str]:
    return [path.stem for path in GROUP_FILES if path.parent.name == group]


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Compose]:
    """Compose the configuration as `train.py` would, with its outputs in a temporary folder."""
    OmegaConf.register_new_resolver(
        "run_folder", lambda name, _: str(tmp_path / name), replace=True
    )

    def of(*overrides: str) -> DictConfig:
        cfg = compose(
            "train",
            overrides=[*overrides, f"hydra.runtime.output_dir={tmp_path}"],
            return_hydra_config=True,
        )
        HydraConfig.instance().set_config(cfg)
        return cfg

    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield of
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    OmegaConf.clear_resolver("run_folder")


def build(node: Any) -> Any:
    return instantiate(node, _convert_="all")


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2))]


def test_the_default_composes_and_its_data_are_the_phantoms(composed: Compose) -> None:
    cfg = composed()
    data = build(cfg.data)
    assert isinstance(data, LightningDataModule)
    assert (cfg.name, cfg.data.name) == ("phantom_resnet18", "phantom")
    assert isinstance(data.phantom, PhantomSpec)
    assert cfg.hydra.run.dir.endswith("phantom_resnet18")


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_group_file_is_short(path: Path) -> None:
    assert 3 <= len(path.read_text().splitlines()) <= 25


@pytest.mark.parametrize("option", options("data"))
def test_every_data_option_builds(option: str, composed: Compose) -> None:
    data = build(composed(f"data={option}").data)
    assert data.name == option
    assert (data.phantom is not None) == (option == "phantom")


@pytest.mark.parametrize("option", options("model"))
def test_every_model_option_builds(option: str, composed: Compose) -> None:
    model = build(composed(f"model={option}").model).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 14)


@pytest.mark.parametrize("option", options("loss"))
def test_every_loss_option_builds(option: str, composed: Compose) -> None:
    loss = build(composed(f"loss={option}").loss)
    assert isinstance(loss, FindingsLoss)
    loss.fit_to(positives=torch.full((14,), 10.0), images=100)
    assert loss(torch.zeros(3, 14), torch.ones(3, 14)).shape == (3,)


@pytest.mark.parametrize("optimizer", options("optimizer"))
@pytest.mark.parametrize("option", options("scheduler"))
def test_every_scheduler_option_builds_with_every_optimizer_and_its_rate(
    option: str, optimizer: str, composed: Compose
) -> None:
    cfg = composed(f"scheduler={option}", f"optimizer={optimizer}", "optimizer.lr=0.25")
    config = build(cfg.scheduler)
    built = build(cfg.optimizer)(parameters())
    assert isinstance(built, torch.optim.Optimizer)
    assert built.param_groups[0]["lr"] == 0.25
    if option == "none":
        assert config == {}
        return
    assert config["interval"] in ("step", "epoch")
    steps = {"total_steps": 10} if config.get("needs_total_steps") else {}
    assert hasattr(config["scheduler"](built, **steps), "step")


@pytest.mark.parametrize("option", options("sweep"))
def test_every_sweep_searches_keys_that_exist(option: str, composed: Compose) -> None:
    cfg = composed(f"sweep={option}")
    assert cfg.hydra.sweep.dir == f"runs/phantom_resnet18_{option}"
    for key in cfg.hydra.sweeper.params:
        assert key in cfg.hydra.runtime.choices or OmegaConf.select(cfg, key) is not None, key


@pytest.mark.parametrize("option", options("precision"))
def test_every_precision_option_makes_a_trainer(
    option: str, composed: Compose, tmp_path: Path
) -> None:
    cfg = composed(f"precision={option}", "accelerator=cpu")
    precision = choose_precision(cfg.trainer.precision, accelerator="cpu")
    environment = {"devices": 1, "plugins": [LightningEnvironment()]}
    trainer = build(cfg.trainer)(
        precision=precision, logger=False, default_root_dir=tmp_path, **environment
    )
    assert isinstance(trainer, Trainer)
    assert trainer.max_epochs == 8
    assert trainer.precision == {"16-mixed": "bf16-mixed"}.get(option, option)


SPEEDS = {
    "default": Speed(),
    "plain": Speed(
        channels_last=False,
        keep_freed_memory=False,
        bind_cores=False,
        tf32=False,
        cudnn_benchmark=False,
    ),
}
NAMED: dict[str, Callable[[DictConfig, str], bool]] = {
    "accelerator": lambda cfg, option: cfg.trainer.accelerator == option,
    "trainer": lambda cfg, option: build(cfg.trainer).func is Trainer,
    "strategy": lambda cfg, option: build(cfg.strategy).name == option,
    "speed": lambda cfg, option: build(cfg.speed) == SPEEDS[option],
}


@pytest.mark.parametrize(
    "group, option", [(group, one) for group in NAMED for one in options(group)]
)
def test_every_option_of_where_and_how_fast_a_run_goes_is_what_it_is_named(
    group: str, option: str, composed: Compose
) -> None:
    assert NAMED[group](composed(f"{group}={option}"), option)


@pytest.mark.parametrize("logger", options("logger"))
@pytest.mark.parametrize("option", options("callbacks"))
def test_every_callbacks_and_logger_option_builds(
    option: str, logger: str, composed: Compose, tmp_path: Path
) -> None:
    cfg = composed(f"callbacks={option}", f"logger={logger}")
    callbacks = build(cfg.callbacks)
    made = [callback for callback in callbacks.values() if callback]
    assert all(isinstance(callback, Callback) for callback in made)
    assert callbacks["last"].path == tmp_path / "checkpoints" / "last.ckpt"
    assert Path(callbacks["best"].dirpath) == tmp_path / "checkpoints"
    assert ("early_stopping" in callbacks) == (option == "early_stopping")
    loggers = list(build(cfg.logger).values())
    assert len(loggers) == (logger != "none")
    assert all(isinstance(one, Logger) for one in loggers)
    assert list(tmp_path.iterdir()) == []  # nothing is written before a run begins
    assert (callbacks["learning_rate"] is None) == (logger == "none")  # it needs one


def test_the_evaluation_builds(composed: Compose) -> None:
    judge = build(composed("evaluation.resamples=7").evaluation)
    assert isinstance(judge, Judge)
    assert judge.evaluator.resamples == 7
    assert judge.operating_point.rule == "youden"
    assert judge.calibration is not None
    assert build(composed("evaluation.calibration=null").evaluation).calibration is None


def test_another_operating_point_is_two_keys_away(composed: Compose) -> None:
    keys = ("evaluation.operating_point.rule=sensitivity", "evaluation.operating_point.target=0.9")
    rule = build(composed(*keys).evaluation).operating_point
    assert (rule.rule, rule.target) == ("sensitivity", 0.9)


def test_every_top_level_key_is_used(composed: Compose) -> None:
    source = (REPOSITORY / "train.py").read_text()
    read = set(re.findall(r"\bcfg\.(\w+)", source)) | set(re.findall(r'make\(cfg, "(\w+)"', source))
    keys = {str(key) for key in composed()} - {"hydra"}
    assert keys <= read


def test_every_group_is_in_the_defaults(composed: Compose) -> None:
    groups = {path.parent.name for path in GROUP_FILES}
    assert groups - {"experiment"} <= composed().hydra.runtime.choices.keys()


@pytest.mark.parametrize("experiment", PAPER)
def test_every_row_of_the_paper_composes_and_says_which_row_it_is(
    experiment: str, composed: Compose
) -> None:
    cfg = composed(f"experiment={experiment}")
    assert cfg.name == experiment
    assert cfg.paper_row == int(experiment.split("_")[1])
    choices = cfg.hydra.runtime.choices
    assert choices.data == "ai4m"
    assert choices.accelerator == ("cpu" if cfg.paper_row == 1 else "cuda")
    assert choices.strategy == ("mpi" if cfg.paper_row >= 3 else "single")
    assert cfg.trainer.precision == ("16-mixed" if cfg.paper_row >= 4 else "32-true")
    assert choices.scheduler == ("step" if cfg.paper_row >= 4 else "none")
    assert choices.model == ("resnet50_mlp" if cfg.paper_row == 5 else "resnet18")


def test_the_papers_five_rows_are_there() -> None:
    assert [name.split("_")[1] for name in PAPER] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_command_line_overrides_an_experiment(experiment: str, composed: Compose) -> None:
    given = ("accelerator=cpu", "data=phantom", "trainer.max_epochs=1")
    cfg = composed(f"experiment={experiment}", *given)
    assert (cfg.trainer.accelerator, cfg.trainer.max_epochs) == ("cpu", 1)
    assert isinstance(build(cfg.data).phantom, PhantomSpec)
    model = HydraConfig.get().runtime.choices["model"]
    assert cfg.name == (experiment if experiment in PAPER else f"phantom_{model}")


@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_the_fast_experiment_fits_any_optimizer_and_turns_its_switches_on(
    optimizer: str, composed: Compose
) -> None:
    cfg = composed("experiment=fast", f"optimizer={optimizer}")
    assert build(cfg.optimizer)(parameters()).defaults["fused"] is True
    assert build(cfg.speed) == Speed(cuda_graph=True)
    assert cfg.trainer.precision == "bf16-mixed"


@pytest.mark.parametrize("option", options("augment"))
def test_every_augment_option_gives_images_between_black_and_white(
    option: str, composed: Compose
) -> None:
    augment = build(composed(f"augment={option}").augment)
    if option == "none":
        assert augment == {}
        return
    images = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    augmented = augment(images, torch.arange(4))
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.float32
    assert 0 <= augmented.min() <= augmented.max() <= 1
    assert not torch.equal(augmented, images / 255)


@pytest.mark.parametrize("option", options("growth"))
def test_every_growth_option_ends_with_whole_images(option: str, composed: Compose) -> None:
    growth = build(composed(f"growth={option}").growth)
    if option == "none":
        assert growth == {}
        return
    sides = [growth.side(epoch=epoch, of=8, full=224) for epoch in range(8)]
    assert sides == [64, 96, 128, 160, 224, 224, 224, 224]


def test_an_experiment_may_override_any_key(composed: Compose, tmp_path: Path) -> None:
    mine = tmp_path / "searched" / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    keys = "seed: 5, stages: [fit], name: mine, evaluation: {resamples: 3}"
    mine.write_text(f"# @package _global_\n{{{keys}, data: {{normalize: imagenet}}}}\n")
    cfg = composed("experiment=mine", f"hydra.searchpath=[file://{mine.parents[1]}]")
    assert (cfg.seed, list(cfg.stages), cfg.name) == (5, ["fit"], "mine")
    assert (cfg.evaluation.resamples, cfg.data.normalize) == (3, "imagenet")
    assert cfg.data.seed == 5


def test_normalisation_and_size_are_chosen_once_for_data_and_model(composed: Compose) -> None:
    model = OmegaConf.to_container(composed().model)
    assert isinstance(model, dict)
    assert not {"image_size", "normalize"} & model.keys()
