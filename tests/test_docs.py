"""What the documentation says to type exists, and what it and the code point to is there."""

import dataclasses
import re
import shlex
import typing
from pathlib import Path

import draccus
import pytest
from lerobot.configs import PreTrainedConfig
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.configs.train import TrainPipelineConfig

import lerobot_policy_world_modality  # noqa: F401 - registers types
from coc_tools.config import LabelConfig
from coc_tools.judge.cli import EvalConfig
from coc_tools.view.cli import ViewConfig
from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from lerobot_policy_world_modality.intervention.cli import InterveneConfig
from lerobot_policy_world_modality.record.record_options import RecordConfig
from wm_tools.push.cli import make_parser as push_parser
from wm_tools.trial.cli import make_parser as trial_parser
from wm_tools.verify.cli import make_parser as verify_parser
from world_modality_core.memory.sources import ARM_SOURCES, TESTED_SOURCES, TRAINING_SOURCES, MemorySource
from world_modality_core.monitor.cli import make_parser as monitor_parser
from world_modality_core.precompute.precompute_options import PrecomputeConfig
from world_modality_core.prophet.training_options import ProphetTrainingConfig
from world_modality_core.studies.evidence.compare_cli import CompareConfig, folders_as_option
from world_modality_core.studies.matrix.cli import make_parser as matrix_parser
from world_modality_core.studies.report.cli import make_parser as report_parser

REPO = Path(__file__).parents[1]
PAGES = [REPO / "README.md", REPO / "SECURITY.md", *sorted((REPO / "docs").glob("*.md"))]
CONFIGS = {
    "wm-record": RecordConfig,
    "wm-precompute": PrecomputeConfig,
    "wm-prophet": ProphetTrainingConfig,
    "wm-eval": WorldEvalConfig,
    "wm-intervene": InterveneConfig,
    "wm-compare": CompareConfig,
    "lerobot-train": TrainPipelineConfig,
    "lerobot-eval": EvalPipelineConfig,
    "coc-label": LabelConfig,
    "coc-eval": EvalConfig,
    "coc-view": ViewConfig,
}
PARSERS = {
    "wm-matrix": matrix_parser(),
    "wm-monitor": monitor_parser(),
    "wm-report": report_parser(),
    "wm-push": push_parser(),
    "wm-verify": verify_parser(),
    "wm-trial": trial_parser(),
}
CODE = ["lerobot_policy_world_modality", "world_modality_core", "coc_tools", "wm_tools", "examples", "benchmarks"]
VARIABLES = {"USER": "me", "type": "F", "source": "zero", "arm": "E2", "suite": "libero_goal", "tier": "easy"}


def commands():
    """(page, command) of every shell command in a code block that is one of ours or of LeRobot's."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
            variables = VARIABLES | dict(re.findall(r'^(\w+)="([^"]*)"$', block, flags=re.MULTILINE))
            for line in block.replace("\\\n", " ").splitlines():
                if line.split() and line.split()[0] in {*CONFIGS, *PARSERS} and "..." not in line:
                    text = line
                    while match := re.search(r"\$\{?(\w+)\}?", text):  # a variable may hold another
                        text = text.replace(match[0], variables[match[1]])
                    yield pytest.param(shlex.split(text, comments=True), id=f"{page.name}: {text[:60]}")


def options_of_parts():
    """(program, option) of every part of a command: in a sentence, or where "..." stands for the rest."""
    for page in PAGES:
        texts = page.read_text().split("```")
        parts = [code for sentences in texts[::2] for code in re.findall(r"`([^`]+)`", sentences)]
        lines = [line for block in texts[1::2] for line in block.replace("\\\n", " ").splitlines()]
        parts += [line for line in lines if "..." in line]
        for program, *words in filter(None, map(str.split, parts)):
            if program in {*CONFIGS, *PARSERS}:
                for option in (word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")):
                    yield pytest.param(program, option, id=f"{page.name}: {program} --{option}")


def test_there_are_commands_to_check():
    assert len(list(commands())) > 8 and len(list(options_of_parts())) > 20


def has_option(config: type, names: list[str]) -> bool:
    """Whether a configuration has the option of these names, or is read from a checkpoint (`path`)."""
    if names in (["path"], ["discover_packages_path"]):
        return True
    kind = typing.get_type_hints(config).get(names[0]) if dataclasses.is_dataclass(config) else None
    kinds = typing.get_args(kind) or (kind,)
    return kind is not None and (len(names) == 1 or any(has_option(kind, names[1:]) for kind in kinds))


def test_an_option_that_is_none_is_noticed():
    kind = PreTrainedConfig.get_choice_class("world_F")
    assert has_option(kind, ["memory", "source"]) and has_option(kind, ["device"])
    assert not has_option(kind, ["memory", "sauce"]) and not has_option(kind, ["device", "source"])


def options_of(parser) -> set[str]:
    """Of a parser and of its subcommands."""
    subcommands = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    names = {name.removeprefix("--") for name in parser._option_string_actions}
    return names.union(*(options_of(each) for choices in subcommands for each in choices.values()))


@pytest.mark.parametrize(("program", "option"), options_of_parts())
def test_options_of_parts_of_commands_exist(program, option):
    if program in PARSERS:
        assert option in options_of(PARSERS[program])
        return
    names = option.split(".")
    kinds = [CONFIGS[program]]
    if names[0] == "policy" and len(names) > 1:
        kinds, names = list(PreTrainedConfig.get_known_choices().values()), names[1:]
    assert names in (["help"], ["config_path"], ["type"]) or any(has_option(kind, names) for kind in kinds)


@pytest.mark.parametrize("command", commands())
def test_documented_commands_are_understood(command, tmp_path):
    program, *arguments = command
    if program in PARSERS:
        PARSERS[program].parse_args(arguments)
        return
    if program == "wm-compare":
        arguments = folders_as_option(arguments)
    # Read while the command is parsed: a config with SmolVLA's defaults stands for the one on the Hub.
    PreTrainedConfig.get_choice_class("smolvla")(device="cpu")._save_pretrained(tmp_path)
    arguments = [re.sub(r"(--policy.init_from)=.*", rf"\1={tmp_path}", argument) for argument in arguments]
    # LeRobot reads these from the checkpoint before draccus sees them.
    if any(argument.startswith("--policy.path") for argument in arguments):
        options = [argument.split("=")[0] for argument in arguments if argument.startswith("--policy.")]
        types = PreTrainedConfig.get_known_choices().values()
        # Which type the checkpoint holds is not written on the page: one must have them all.
        assert any(all(has_option(kind, option.split(".")[1:]) for option in options) for kind in types), options
        arguments = [argument for argument in arguments if not argument.startswith("--policy.")]
    arguments = [a if "=" in a or not a.startswith("--") else f"{a}=true" for a in arguments]
    draccus.parse(CONFIGS[program], args=arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


HEADING = "| source | memory | needs | `memory.content` | used in | a policy that acts worse with it relies on |"


def table_of_sources() -> str:
    """The table of docs/memory.md, from the entries in the code."""
    rows = [HEADING, "|---" * 6 + "|"]
    for source in MemorySource:
        traits = source.traits
        needs = {
            "Prophet": traits.runs_prophet,
            "current latent": traits.reads_current,
            "recorded future": traits.is_offline,
            "batch >= 2": traits.partner,
        }
        places = {
            "training": source in TRAINING_SOURCES,
            "rollouts": source in TRAINING_SOURCES and not traits.is_offline,
            "`wm-intervene`": source in TESTED_SOURCES,
            "`wm-eval`": source in ARM_SOURCES,
        }
        needs, places = (", ".join(name for name, is_so in found.items() if is_so) for found in (needs, places))
        contents = "any" if len(traits.contents) == 3 else ", ".join(traits.contents)
        cells = [f"`{source}`", traits.memory, needs, contents, places, traits.relies_on or ""]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_table_of_memory_sources_is_that_of_the_code():
    table = table_of_sources()
    assert table in (REPO / "docs/memory.md").read_text(), f"docs/memory.md should hold\n{table}"


def test_pages_named_in_code_exist():
    ours = [path for folder in CODE for path in sorted((REPO / folder).rglob("*.py"))]
    named = {name for path in ours for name in re.findall(r"docs/[\w/]+\.md", path.read_text())}
    assert named
    assert not [name for name in named if not (REPO / name).exists()]
