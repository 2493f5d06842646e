"""The plain JSONL format: in, out, and what is refused."""

from __future__ import annotations

import json

import pytest

from coc_tools.config import DatasetConfig, LabelConfig
from coc_tools.import_export import export_labels, import_labels
from coc_tools.labelling import label
from coc_tools.store import LabelFile, StoreError, read_labels
from tests.coc.helpers import label_of


def write(path, *lines) -> str:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_texts_come_in_and_go_out(reader, coc_source, tmp_path):
    plain = write(
        tmp_path / "in.jsonl",
        {"episode_index": 2, "coc_text": "It  pushes\nthe puck.", "model": "x"},
        {"episode_id": "0", "coc_text": "It opens."},
        {"episode_id": 3, "coc_text": "Es öffnet."},
        "\n",
    )
    labels, out = str(tmp_path / "labels.jsonl"), tmp_path / "deep" / "out.jsonl"
    with LabelFile(labels) as file:
        file.append(label_of(reader, 3))
    cfg = LabelConfig(DatasetConfig(root=str(coc_source)), labels, "none", import_jsonl=plain, export_jsonl=str(out))
    label(cfg)
    found = read_labels(labels)
    assert list(found) == [0, 2, 3] and found[2].text == "It pushes the puck." and found[2].steps == []
    assert (found[0].task, found[0].length_s) == (reader[0].task, 1.2)
    assert found[0].provenance.backend == "import" and len(found[3].steps) == 2  # what was there stays
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["episode_index"] for line in lines] == [0, 2, 3]
    assert lines[2] == {"episode_index": 3, "task": reader[3].task, "coc_text": found[3].text}
    # What went out comes in again.
    with LabelFile(tmp_path / "again.jsonl") as again:
        assert import_labels(out, reader, again) == (3, 0)
        assert import_labels(out, reader, again) == (0, 3)
        assert [again[e].text for e in again] == [line["coc_text"] for line in lines]
        assert export_labels(again, tmp_path / "out2.jsonl") == 3
    assert (tmp_path / "out2.jsonl").read_bytes() == out.read_bytes()


def test_labels_of_this_tool_keep_their_steps(reader, tmp_path):
    wanted = label_of(reader, 1)
    path = write(tmp_path / "in.jsonl", wanted.to_line() + "\n")
    with LabelFile(tmp_path / "labels.jsonl") as labels:
        assert import_labels(path, reader, labels) == (1, 0)
        assert labels[1] == wanted


GOOD = {"episode_index": 0, "coc_text": "It opens."}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense\n", "line 2: not JSON"),
        ("[1]\n", "line 2: expected a JSON object"),
        ({"coc_text": "x"}, "line 2: episode_index .* is None"),
        ({"episode_index": True, "coc_text": "x"}, "is True"),
        ({"episode_id": "three", "coc_text": "x"}, "is 'three'"),
        ({"episode_index": 1}, "line 2: coc_text is None"),
        ({"episode_index": 1, "coc_text": "  "}, "coc_text is '  '"),
        ({"episode_index": 4, "coc_text": "x"}, "line 2: labels episode 4, and the dataset has 4 episodes"),
        ({"episode_id": 0, "coc_text": "x"}, "lines 1 and 2 are both of episode 0"),
        ({"episode_index": 1, "steps": []}, "line 2: not a label"),
    ],
)
def test_damaged_files_add_nothing(reader, tmp_path, line, message):
    path = write(tmp_path / "in.jsonl", GOOD, line)
    with LabelFile(tmp_path / "labels.jsonl") as labels:
        with pytest.raises(StoreError, match=message):
            import_labels(path, reader, labels)
        assert len(labels) == 0
        assert import_labels(write(tmp_path / "good.jsonl", GOOD), reader, labels) == (1, 0)


def test_labels_of_another_dataset_are_refused(reader, many, tmp_path):
    path = write(tmp_path / "in.jsonl", label_of(many, 1, (0.0,)).to_line() + "\n")
    with LabelFile(tmp_path / "labels.jsonl") as labels:
        with pytest.raises(StoreError, match="labels of another dataset"):
            import_labels(path, reader, labels)
        assert import_labels(path, many, labels) == (1, 0)
