"""Uploading to a Hub and loading back on another machine: real client, real commands, a small Hub on the loopback."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.hub.machine import OTHER_TOKEN, TOKEN, run
from tests.hub.server import Hub

POLICIES = ["world_A", "world_B", "world_B_cont", "world_C", "world_F", "smolvla_world", "qwen_world_fplus"]


@pytest.fixture(scope="module")
def story(tiny_companion, tmp_path_factory):
    """Somebody uploads, somebody else loads, and loads again without a network."""
    base = tmp_path_factory.mktemp("hub")
    tiny, shared = [str(part) for part in tiny_companion], base / "shared"
    shared.mkdir()
    with Hub({TOKEN: "me", OTHER_TOKEN: "you"}) as hub:
        author = run("author", base / "author", hub.url, TOKEN, tiny=tiny, shared=shared)
        for kind, name, other in (("datasets", "me/source_world", "me/source_world_private"),
                                  ("models", "me/acting", "me/secret")):  # fmt: skip
            hub.repositories[kind, other] = copy.deepcopy(hub.repositories[kind, name])
            hub.repositories[kind, other].private = True
        first = hub.repositories["models", "me/acting"].branches["plain"]
        names = [*POLICIES, "adapter"]
        reader = run("reader", base / "reader", hub.url, TOKEN, tiny=tiny, shared=shared, first=first, names=names)
        requests = len(hub.log)
        offline = run("offline", base / "reader", hub.url, None, offline=True, tiny=tiny, shared=shared)
        yield SimpleNamespace(
            hub=hub, base=base, author=author, reader=reader, offline=offline, offline_requests=len(hub.log) - requests
        )


def card_of(story, name: str, kind: str = "models", revision: str = "main") -> tuple[dict, str]:
    """Metadata and text of a repository's card."""
    text = story.hub.files(kind, name, revision)["README.md"].decode()
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


# What arrives.


@pytest.mark.slow
@pytest.mark.parametrize("name", [*POLICIES, "adapter"])
def test_a_policy_loads_from_the_hub_and_acts_as_it_did(story, name):
    assert story.reader["differences"][name] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_the_card_of_a_policy_tells_what_it_is(story, name):
    metadata, body = card_of(story, f"me/{name}")
    assert {"world-modality", "lerobot", name} <= set(metadata["tags"]) and metadata["library_name"] == "lerobot"
    assert metadata["datasets"] == "tests/source" or metadata["datasets"] == ["tests/source"]
    assert "license" not in metadata  # nobody stated one
    config = json.loads(story.hub.files("models", f"me/{name}")["config.json"])
    assert f"predicts {config['chunk_size']} actions, executes {config['n_action_steps']} of them" in body
    assert "`efficientnet_lite0`" in body and "2 tokens of 8 numbers a frame" in body and "3 frames, 1 apart" in body
    info = json.loads(story.hub.files("datasets", "me/source_world")["meta/world_modality.json"])
    assert info["content_sha256"] in body and "made from `tests/source`" in body
    reads = name in ("world_F", "smolvla_world", "qwen_world_fplus")
    assert ("0.1974" in body) == reads  # tanh(0.2), what the gates were set to
    assert f"lerobot-eval --policy.path=me/{name}" in body and f"wm-eval --policy.path=me/{name}" in body
    assert "No paired results were given" in body and "gate_closed" in body if reads else "--arms=intact " in body
    backbone = {"smolvla_world": "vlm_model_name", "qwen_world_fplus": "vlm_backbone"}.get(name)
    assert ("can't be loaded elsewhere" in body) == (backbone is not None)  # the tests' backbones are folders
    assert backbone is None or f"`{backbone}={story.base}" in body


@pytest.mark.slow
def test_the_card_of_an_adapter_names_its_base(story):
    metadata, body = card_of(story, "me/adapter")
    assert metadata["base_model"] == "me/smolvla_world" and "| Adapter on | `me/smolvla_world` |" in body
    assert "action_out_proj" in body and "0.1974" in body
    files = set(story.hub.files("models", "me/adapter"))
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files


@pytest.mark.slow
def test_lerobot_train_uploads_at_its_end(story):
    told = story.author["trained"]
    assert told["status"] is None and story.hub.repositories["models", "me/trained"].private
    metadata, body = card_of(story, "me/trained")
    assert metadata["license"] == "mit" and "steps 2, batch_size 4, seed 1000" in body
    assert re.search(r"Gates \| .*`memory` 0\.0\d+", body)


@pytest.mark.slow
def test_nothing_of_the_disk_is_uploaded_but_what_the_card_warns_of(story, tiny_companion):
    disk = str(tiny_companion.source_root.parent)
    backbones = [str(story.base / "shared" / name) for name in ("smolvlm", "qwen")]
    for kind, name in story.hub.repositories:
        for path, content in story.hub.files(kind, name).items():
            assert "cache" not in path and path.endswith((".json", ".jsonl", ".md", ".safetensors", ".parquet", ".mp4"))
            text = content.decode(errors="ignore")
            for backbone in backbones if name in ("me/smolvla_world", "me/qwen_world_fplus", "me/adapter") else ():
                text = text.replace(backbone, "")
            assert disk not in text, (name, path)
    assert disk in (story.base / "author/train/checkpoints/last/pretrained_model/train_config.json").read_text()


@pytest.mark.slow
def test_a_companion_and_its_copy_arrive_private_tagged_and_with_cards(story):
    assert story.author["companion"]["status"] is None
    for name in ("me/source_world", "me/source_world_stripped"):
        repository = story.hub.repositories["datasets", name]
        assert repository.private and repository.tags == {"v3.0": repository.branches["main"]}
        metadata, body = card_of(story, name, "datasets")
        assert metadata["license"] == "other" and metadata["license_name"] == "same-as-source"
        assert "the same as the source's" in body and "`tests/source`" in body
    _, body = card_of(story, "me/source_world", "datasets")
    assert "effective rank" in body and "8 codes" in body and "episode lengths `" in body
    assert "--policy.companion.repo_id=me/source_world" in body
    told = story.reader["companion"]
    assert told["is_equal"] and told["spec"] and not told["card"] and "snapshots" in told["root"]


@pytest.mark.slow
def test_a_companion_can_be_uploaded_later(story):
    assert story.author["pushed_world"]["status"] is None
    assert story.hub.repositories["datasets", "me/pushed_world"].tags.keys() == {"v3.0"}
    told = story.reader["pushed_world"]
    assert told["is_equal"] and told["spec"] and "snapshots" in told["root"]


@pytest.mark.slow
def test_labels_arrive_as_a_file_and_as_rows(story):
    assert story.reader["labels"]["has_rows"]
    assert sum("of episode 3" in text for text in story.reader["labels"]["texts"]) == 2
    metadata, body = card_of(story, "me/labels", "datasets")
    assert metadata["license"] == "cc-by-4.0" and metadata["configs"][0]["data_files"] == "labels.jsonl"
    assert "4, 8 steps" in body and "`push the puck` (2)" in body and "`test` `m`" in body
    assert "--import_jsonl=hf://datasets/me/labels/labels.jsonl" in body
    _, body = card_of(story, "me/labelled", "datasets")
    assert "style `coc`" in body


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lerobot-eval", "wm-eval", "wm-eval, pinned", "wm-intervene"])
def test_commands_take_a_policy_by_its_name_on_the_hub(story, name):
    assert story.reader["commands"][name]["status"] is None
    record = {"lerobot-eval": "lerobot_eval/eval_info.json", "wm-eval": "wm_eval/episodes.parquet",
              "wm-eval, pinned": "wm_eval_pinned/episodes.parquet",
              "wm-intervene": "wm_intervene/interventions.json"}[name]  # fmt: skip
    assert (story.base / "reader" / record).is_file()


@pytest.mark.slow
def test_results_get_onto_the_card_of_the_checkpoint_that_they_are_of(story):
    metadata, body = card_of(story, "me/acting")
    assert "18/20" in body and "8/20" in body and "F/intact - F/shuffle_within_task" in body
    assert "F: not decided whether the memory is read" in body and "--env.task=push-v3" in body
    assert "20 episodes of this checkpoint" not in body and "40 episodes of this checkpoint" in body
    assert body.strip() in story.author["dry"]["printed"]  # --dry_run shows the very card
    error = story.author["foreign"]["error"]
    assert re.search(r"eval=other: none of its 40 episodes was run with this checkpoint \(hash \w{16}", error)


@pytest.mark.slow
def test_what_lies_beside_is_neither_uploaded_nor_passed_over_in_silence(story):
    files = set(story.hub.files("models", "me/acting"))
    assert files == {
        "README.md", "config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"
    }  # fmt: skip
    assert (
        "not part of what is uploaded: 'notes.json', 'notes.safetensors', 'notes.yaml'"
        in story.author["mended"]["printed"]
    )
    files = story.hub.files("datasets", "me/labelled")
    assert "meta/notes.json" not in files and "meta/tasks.parquet" in files
    assert "not part of what is uploaded: 'meta/notes.json'" in story.author["labelled"]["printed"]


@pytest.mark.slow
def test_a_revision_is_a_branch_or_a_commit(story):
    assert story.author["branch"]["status"] is None
    assert story.reader["pinned"]["results"] == [False, False, True]


# What goes wrong.


@pytest.mark.slow
def test_an_upload_that_breaks_is_given_again_and_sends_nothing_twice(story):
    assert story.author["dropped"]["status"] is None  # cut off once half-way: the client sends that file again
    broken = story.author["broken"]
    assert broken["status"] == 1
    assert re.fullmatch(
        r"wm-push: repo_id='me/acting': the Hub answered with error 500; try later; then give the same command again: "
        r"files that arrived are not sent a second time",
        broken["error"],
    )
    assert story.author["mended"]["status"] is None and story.author["again"]["status"] is None
    assert set(story.hub.uploaded.values()) == {1}
    # The first (empty) state, and one commit of the whole upload: giving it again changed nothing.
    acting = story.hub.repositories["models", "me/acting"]
    assert [len(commit.files) > 0 for commit in acting.commits if commit.sha != acting.branches["plain"]] == [
        False,
        True,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, told",
    [
        ("public", "'me/dropped' exists and is public, and private=true was asked for: make it private"),
        ("theirs", "'you/F': the token that was found may not write there .403.; log in with `hf auth login`"),
        ("name", "'me/a b' can't be the name of a repository: expected USER/NAME"),
        ("no_user", "'F' does not say whose: expected USER/NAME"),
        ("nothing", "path='nowhere' does not exist"),
        ("plain", "is neither a checkpoint .config.json., a LeRobotDataset"),
        ("wrong_token", "'me/refused': the Hub does not accept the token that was found .401.; log in with"),
        ("no_token", "'me/refused': no token was found; log in with `hf auth login`, or set HF_TOKEN"),
        ("429", "'me/refused': the Hub asks to slow down .429.; wait some minutes; then give the same command again"),
        ("500", "'me/refused': the Hub answered with error 500; try later"),
    ],
)
def test_an_upload_that_cannot_be_is_refused_in_one_line(story, case, told):
    error = story.author["refused"][case]
    assert re.search(told, error) and "\n" not in error and error.startswith("wm-push: ")
    assert ("models", "me/refused") not in story.hub.repositories


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, told",
    [
        ("wrong_repo", "HubError: repo_id='me/nothing' does not exist, or is private and the token that was found may"),
        ("no_checkpoint", "HubError: repo_id='me/nothing' does not exist, or is private"),
        ("policy_as_companion", "CompanionError: 'me/labels' .* can't be read as a LeRobotDataset .*name a comp"),
        ("plain_dataset", "CompanionError: 'me/source_world_stripped' .* is a plain dataset, not a companion"),
        ("revision", "HubError: repo_id='me/source_world' has no revision 'gone': name a branch, tag or commit"),
        ("no_file", "HubError: repo_id='me/labels' .revision main. has no file 'other.jsonl'"),
        ("no_path", "HubError: 'hf://datasets/me/labels': expected hf://datasets/USER/NAME"),
        ("eval_command", "wm-eval: .*repo_id='me/nothing' does not exist, or is private"),
        ("eval_revision", "wm-eval: .*repo_id='me/acting' has no revision 'gone': name a branch"),
        ("command", "wm-intervene: .*repo_id='me/nothing' does not exist, or is private"),
        (
            "private_no_token",
            "HubError: .*does not exist, or is private and no token was found .401.: check the name, or",
        ),
        ("private_no_token_checkpoint", "HubError: repo_id='me/secret' does not exist, or is private and no token"),
        ("private_other_token", "HubError: .*'me/source_world_private' does not exist, or is private and the token"),
        ("private_other_token_checkpoint", "HubError: repo_id='me/secret' does not exist, or is private and the token"),
        ("429", "HubError: .*the Hub asks to slow down .429."),
        ("500", "HubError: .*the Hub answered with error 500"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(story, case, told):
    error = story.reader["refused"][case]
    assert re.search(told, error) and "\n" not in error


@pytest.mark.slow
def test_without_a_network_everything_loads_that_was_downloaded_before(story):
    offline = story.offline
    assert offline["differences"]["world_F"] < 1e-5 and offline["companion"]["is_equal"] and offline["labels"] == 4
    assert Path(offline["checkpoint"]).is_dir() and story.offline_requests == 0
    for case in ("companion", "checkpoint", "labels"):
        assert re.match("HubError: .*HF_HUB_OFFLINE", offline["refused"][case]), offline["refused"][case]
    assert "HF_HUB_OFFLINE forbids to ask the Hub, and uploading needs" in offline["refused"]["push"]


@pytest.mark.slow
def test_tokens_are_nowhere(story):
    machines = (story.author, story.reader, story.offline)
    assert TOKEN in str(story.hub.tokens)  # what is looked for is what was used
    for token in (TOKEN.encode(), OTHER_TOKEN[:-1].encode()):
        assert not any(token in machine["printed"].encode() for machine in machines)
        for (kind, name), repository in story.hub.repositories.items():
            assert not any(token in content for c in repository.commits for content, _ in c.files.values()), (
                kind,
                name,
            )
        for path in story.base.rglob("*"):
            assert not (path.is_file() and token in path.read_bytes()), path
