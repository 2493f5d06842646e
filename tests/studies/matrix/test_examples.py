"""The studies of examples/ are understood by the real config classes of the commands that they start."""

import json
from dataclasses import asdict
from pathlib import Path

import draccus
import pytest
import yaml
from lerobot.configs import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig

from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from lerobot_policy_world_modality.intervention.cli import InterveneConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.prophet.options import ProphetTrainingConfig
from world_modality_core.studies.matrix import expand as expanding
from world_modality_core.studies.matrix.cli import make_parser
from world_modality_core.studies.matrix.expand import Job, expand
from world_modality_core.studies.matrix.flags import check_flags, has_metrics_file
from world_modality_core.studies.matrix.study import load_study

REPO = Path(__file__).parents[3]
FOLDER = REPO / "examples/studies"
CONFIGS = {
    "train": TrainPipelineConfig,
    "eval": WorldEvalConfig,
    "prophet": ProphetTrainingConfig,
    "intervene": InterveneConfig,
}


@pytest.fixture
def jobs_of(monkeypatch):
    """Jobs of a study of examples/, as if its dataset had been recorded."""
    six = [f"task {n}" for n in range(6)]
    monkeypatch.setattr(expanding, "read_tasks", lambda draw: [task for task in draw.tasks or six for _ in range(70)])

    def make(name: str) -> list[Job]:
        return expand(load_study(FOLDER / name), has_metrics_file)

    return make


def words_of(job: Job, replaced: dict[str, str]) -> list[str]:
    """The arguments of a job, with the checkpoints that are read while they are parsed replaced."""
    words = list(job.command[1:])
    for old, new in replaced.items():
        words = [word.replace(f"={old}", f"={new}") for word in words]
    if any(word.startswith("--policy.path") for word in words):  # LeRobot reads these from the checkpoint
        words = [word for word in words if not word.startswith("--policy.")]
    return words


def decode(kind: str, words: list[str]) -> object:
    """What `draccus.parse` makes of arguments, without the half a second that its help for all types takes."""
    values: dict = {}
    flags = dict(word.removeprefix("--").split("=", 1) for word in words)
    if path := flags.pop("config_path", None):
        values = json.loads((REPO / path).read_text())
    for name, value in flags.items():
        *parts, last = name.split(".")
        target = values
        for part in parts:
            target = target.setdefault(part, {})
        target[last] = yaml.safe_load(value)
    return draccus.decode(CONFIGS[kind], values)


def write_prophet(config: ProphetTrainingConfig, folder: Path) -> str:
    """What a policy reads of a Prophet's folder before it trains."""
    windows = ("n_obs_steps", "history_stride", "n_future_steps", "future_stride")
    described = {"type": "prophet", "format_version": 1} | {name: getattr(config, name) for name in windows}
    described |= {"prophet": asdict(config.prophet), "language": asdict(config.language), "encoder": {}}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "model.safetensors").touch()
    return str(folder)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_s_commands_are_understood(jobs_of, path, tmp_path):
    PreTrainedConfig.get_choice_class("smolvla")(device="cpu")._save_pretrained(tmp_path)
    replaced = {"lerobot/smolvla_base": str(tmp_path)}
    jobs = jobs_of(path.name)
    check_flags(jobs)
    last = [job for job in jobs if job.seed in (jobs[-1].seed, None)]
    parsed = set()
    for job in last:
        words = words_of(job, replaced)
        config = decode(job.kind, words)
        if job.kind == "prophet":
            replaced[str(job.output)] = write_prophet(config, tmp_path / job.name)
        if job.kind not in parsed and not any("config_path" in word for word in words):
            parsed.add(job.kind)
            assert draccus.encode(draccus.parse(CONFIGS[job.kind], args=words)) == draccus.encode(config)
    assert parsed >= {"train", "eval"}


def test_the_seed_s_phases_are_there(jobs_of):
    models = {job.model for job in jobs_of("phases.yaml")}
    assert models == {
        "A_k1", "B_k1", "A_k4", "B_k4", "B_cont_k4", "C_k4", "F_k4", "A_k8", "B_cont_k8", "F_k8"
    }  # fmt: skip


def test_e0_to_e4_are_there(jobs_of):
    jobs = jobs_of("e0_e4.yaml")
    assert {job.model.partition("_")[2] for job in jobs if job.model.startswith("qwen")} == {
        "E0", "E1", "E1_aux", "E2", "E3", "E4"
    }  # fmt: skip
    assert {job.model.partition("_")[2] for job in jobs if job.model.startswith("smolvla")} == {
        "E0", "E1", "E1_aux", "E2"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("policy.d_modle", "train of A_k1: --policy.d_modle: WorldAConfig has no 'd_modle'; it has d_model"),
        ("policy.encoder.famly", "--policy.encoder.famly: EncoderSpec has no 'famly'; it has family"),
        ("dataset.rot", "--dataset.rot: DatasetConfig has no 'rot'; it has root"),
        ("batchsize", "--batchsize: TrainPipelineConfig has no 'batchsize'; it has batch_size"),
    ],
)
def test_flags_that_do_not_exist_are_refused_before_anything_runs(flag, message):
    study = load_study(FOLDER / "phases.yaml")
    study.train[flag] = 1
    with pytest.raises(ConfigError, match=message):
        check_flags(expand(study, has_metrics_file))


def test_flags_of_the_other_commands_are_looked_up_too(jobs_of):
    study = load_study(FOLDER / "phases.yaml")
    study.eval["env.camera_priod"] = 4
    with pytest.raises(ConfigError, match="eval of A_k1: --env.camera_priod: .*camera_period"):
        check_flags(expand(study, has_metrics_file))
    with pytest.raises(ConfigError, match="policy.type='world_G' is unknown; there are .*world_F"):
        has_metrics_file("world_G")
    assert not has_metrics_file("act") and has_metrics_file("smolvla_world")


def test_the_study_in_the_documentation_is_one(tmp_path):
    text = (REPO / "docs/studies.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    path = tmp_path / "study.yaml"
    path.write_text(text)
    jobs = expand(load_study(path), has_metrics_file)
    check_flags(jobs)
    assert {job.model for job in jobs} == {"A", "F_k4", "F_k8", "ACT"}
    commands = (REPO / "docs/studies.md").read_text().partition("```bash\n")[2].partition("```")[0]
    parsed = [make_parser().parse_args(line.split()[1:]) for line in commands.splitlines() if line[:9] == "wm-matrix"]
    assert len(parsed) == 4 and all((REPO / given.study).exists() for given in parsed)
