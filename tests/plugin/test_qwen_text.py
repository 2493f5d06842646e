"""Chain-of-causality text: what is supervised, that no action depends on it, and explanations after the act."""

import json

import numpy as np
import pytest
import torch
from lerobot.utils.collate import lerobot_collate_fn

from coc_tools.dataset_writer import write_copy
from coc_tools.episodes import EpisodeReader
from coc_tools.language_rows import labels_by_index
from coc_tools.store import StoreError
from lerobot_policy_world_modality.policies.qwen_world_fplus.coc_text import text_loss
from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import TextConfig
from tests.coc.helpers import label_of
from tests.plugin.helpers import batch_of, live_batch, open_gates
from tests.plugin.qwen_helpers import build, step
from tests.plugin.test_qwen_policy import count_calls
from wm_tools.doctor.qwen_backbone import FAMILIES, make_qwen

TEXTS = {0: "The gripper moves down because the puck is below it.", 1: "Then it pushes the puck.", 2: "It opens."}


@pytest.fixture(scope="module")
def vlms(tmp_path_factory):
    return {family: make_qwen(tmp_path_factory.mktemp("vlm") / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def vlm(vlms):
    return vlms["qwen3_vl"]


def labels_file(folder, texts=None):
    path = folder / "labels.jsonl"
    lines = [{"episode_index": i, "coc_text": text} for i, text in (TEXTS if texts is None else texts).items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def with_text(tiny_companion, vlm, folder, texts=None, text=None, **options):
    text = TextConfig(jsonl=labels_file(folder, texts), **(text or {}))
    return build(tiny_companion, vlm, text=text, lambda_text=options.pop("lambda_text", 0.1), **options)


FRAMES = [3, 14, 33, 50]  # one of each episode; the last has no label


@pytest.mark.parametrize("mode", ["joint_after_act", "separate"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_exactly_the_label_is_supervised(tiny_companion, vlm, tmp_path, mode, side):
    policy, dataset, (preprocessor, _) = with_text(tiny_companion, vlm, tmp_path, text={"mode": mode})
    batch = batch_of(dataset, preprocessor, FRAMES)
    policy.inputs.padding_side = side
    labels = policy.labels(batch["index"])
    found = policy.inputs(batch, torch.device("cpu"), labels, has_act=mode == "joint_after_act")
    tokenizer = policy.inputs.tokenizer
    for row in range(4):
        said = found.text_ids[found.text_row == row]
        assert tokenizer.decode(said) == (TEXTS[row] + "<|im_end|>" if row in TEXTS else "")
        at = found.text_at[found.text_row == row]
        assert torch.equal(found.ids[row, at + 1], said)  # each state predicts the next token
        length = int(found.mask[row].sum())
        start = found.ids.shape[1] - length if side == "left" else 0
        prompt = tokenizer.decode(found.ids[row, start : start + length - len(said)])
        end = "<ACT_0><ACT_1><ACT_2><ACT_3>" if mode == "joint_after_act" else "assistant\n"
        assert prompt.endswith(end) and batch["task"][row] in prompt
        assert ("<ACT_" in prompt) == (mode == "joint_after_act")
    # Tokenised apart, the label has the tokens that it has behind the action tokens.
    whole = "<ACT_3>" + TEXTS[0] + "<|im_end|>"
    assert tokenizer(whole, add_special_tokens=False)["input_ids"][1:] == labels[0]


def test_the_loss_is_the_model_s_own(tiny_companion, vlm, tmp_path):
    policy, dataset, (preprocessor, _) = with_text(tiny_companion, vlm, tmp_path)
    batch = batch_of(dataset, preprocessor, FRAMES[:1])
    labels = policy.labels(batch["index"])
    sequences = policy.inputs(batch, torch.device("cpu"), labels)
    target = sequences.ids.clone()
    target[:, : -len(labels[0])] = -100
    expected = policy.backbone(**sequences.model_inputs(), labels=target).loss
    states = policy.backbone.model(**sequences.model_inputs()).last_hidden_state
    torch.testing.assert_close(text_loss(policy.backbone, states, sequences)[0], expected)


@pytest.mark.parametrize("mode", ["joint_after_act", "separate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_action_depends_on_the_text(tiny_companion, vlms, tmp_path, family, mode):
    policy, dataset, (preprocessor, _) = with_text(tiny_companion, vlms[family], tmp_path, text={"mode": mode})
    open_gates(policy)
    batch = batch_of(dataset, preprocessor, FRAMES)
    original = policy.labels(batch["index"])
    n = len(original[1])
    # Of one length, so that shapes (and with them kernels) stay; the longest label stays, to be padded up to.
    variants = {
        "original": original,
        "other words": [original[0], list(range(20, 20 + n)), *original[2:]],
        "none": [original[0], None, None, None],
    }
    seen = {}
    for name, labels in variants.items():
        policy.train().zero_grad()
        states, loss_text = policy._see(batch, labels)
        states = policy._inform(states, batch, policy.recorded_batch(batch), None)
        actions = policy.action_head.sample(states)
        policy.action_head.error(states, batch["action"]).mean().backward(retain_graph=True)
        gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
        seen[name] = (actions.detach(), gradients, loss_text.detach())
    for name in ("other words", "none"):
        assert torch.equal(seen[name][0], seen["original"][0])
        for parameter, gradient in seen["original"][1].items():
            assert torch.equal(seen[name][1][parameter], gradient), parameter
        assert not torch.equal(seen[name][2], seen["original"][2])  # the control: the text loss does see the text
    assert seen["none"][2][1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("mode", "n_forwards"), [("joint_after_act", 1), ("separate", 2)])
def test_backbone_forwards_and_lm_head(tiny_companion, vlm, tmp_path, mode, n_forwards):
    policy, dataset, (preprocessor, _) = with_text(tiny_companion, vlm, tmp_path, text={"mode": mode})
    batch = batch_of(dataset, preprocessor, FRAMES)
    language, vision = count_calls(policy.backbone.model.language_model), count_calls(policy.backbone.model.visual)
    shapes = []
    policy.backbone.lm_head.register_forward_hook(lambda module, args, out: shapes.append(tuple(args[0].shape)))
    step(policy, batch)
    assert language == vision == [n_forwards]
    n_tokens = sum(len(label) for label in policy.labels(batch["index"]) if label)
    assert shapes == [(n_tokens, 32)]
    plain, *_ = build(tiny_companion, vlm)
    plain.backbone.lm_head.register_forward_hook(lambda *args: pytest.fail("LM head computed without text"))
    step(plain, batch)


@pytest.mark.parametrize("mode", ["joint_after_act", "separate"])
def test_samples_without_a_label(tiny_companion, vlm, tmp_path, mode):
    policy, dataset, (preprocessor, _) = with_text(tiny_companion, vlm, tmp_path, text={"mode": mode})
    batch = batch_of(dataset, preprocessor, FRAMES)
    loss, values, _ = step(policy, batch)
    each, _, _ = step(policy, batch, reduction="none")
    torch.testing.assert_close(each.mean(), loss)
    assert values["text_share"] == 0.75
    expected = values["loss_action"] + 0.2 * values["loss_world"] + 0.1 * values["loss_text"]
    torch.testing.assert_close(float(loss), expected, rtol=1e-5, atol=1e-6)
    labelled = batch_of(dataset, preprocessor, FRAMES[:3])
    _, without, _ = step(policy, labelled)
    assert without["loss_text"] == pytest.approx(values["loss_text"], rel=1e-4)
    assert without["loss_action"] != pytest.approx(values["loss_action"], rel=1e-4)
    unlabelled = batch_of(dataset, preprocessor, FRAMES[3:])
    loss, values, _ = step(policy, unlabelled)
    assert loss.isfinite() and values["loss_text"] == values["text_share"] == 0
    # require_coc: as if the sample without a label were not there.
    policy.config.text.require_coc = True
    loss, values, gradients = step(policy, batch)
    expected, _, expected_gradients = step(policy, labelled)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5)
    loss, _, gradients = step(policy, unlabelled)
    assert loss == 0 and all(g is None or not g.any() for g in gradients.values())


@pytest.mark.parametrize("mode", ["joint_after_act", "separate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_explanations_follow_the_act(tiny_companion, vlms, tmp_path, family, mode):
    policy, dataset, (preprocessor, _) = with_text(tiny_companion, vlms[family], tmp_path, text={"mode": mode})
    observation = live_batch(dataset, preprocessor, [3, 20, 30]) | {"task": ["push", "open the drawer now", "push"]}
    policy.reset()
    silent = [policy.select_action(observation) for _ in range(4)]
    assert policy._prefix is None  # plans that nobody asks about keep no keys and values
    vision = count_calls(policy.backbone.model.visual)
    policy.reset()
    spoken, said = [], []
    for _ in range(4):
        spoken.append(policy.select_action(observation))
        said.append(policy.explain(max_tokens=6))
    assert vision == [4]  # two plans, each looked at once more for its explanations
    assert torch.equal(torch.stack(spoken), torch.stack(silent))
    assert said[0] == said[1] and all(len(texts) == 3 for texts in said)
    # What the model says without any cache, one sample at a time.
    for row in range(3):
        one = {key: value[row : row + 1] for key, value in observation.items() if key.startswith("observation.")}
        one["task"] = observation["task"][row : row + 1]
        tokens, end = [], policy.inputs.tokenizer.eos_token_id
        for _ in range(6):
            sequences = policy.inputs(one, torch.device("cpu"), [tokens], has_act=mode == "joint_after_act")
            logits = policy.backbone(**sequences.model_inputs()).logits[0, -1, : policy.config.first_act_id]
            tokens.append(int(logits.argmax()))
            if tokens[-1] == end:
                break
        assert policy.inputs.tokenizer.decode(tokens, skip_special_tokens=True).strip() == said[0][row]
    policy.reset()
    with pytest.raises(RuntimeError, match="no plan to explain"):
        policy.explain()


@pytest.mark.parametrize("lambda_text", [0.0, 0.1])
def test_an_lm_head_of_its_own_trains_only_for_text(tiny_companion, tmp_path, lambda_text):
    untied = make_qwen(tmp_path / "vlm", tie=False)
    policy, dataset, (preprocessor, _) = with_text(tiny_companion, untied, tmp_path, lambda_text=lambda_text)
    _, _, gradients = step(policy, batch_of(dataset, preprocessor, FRAMES))
    gradient = gradients["backbone.lm_head.weight"]
    assert (gradient is not None and gradient.abs().sum() > 0) == (lambda_text > 0)


def test_it_learns_to_say_why(tiny_companion, vlm, tmp_path):
    options = {"optimizer_lr": 5e-3, "backbone_lr_factor": 1.0, "lambda_text": 1.0}
    policy, dataset, (preprocessor, _) = with_text(tiny_companion, vlm, tmp_path, **options)
    batch = batch_of(dataset, preprocessor, [3, 14])
    optimizer = torch.optim.AdamW(policy.get_optim_params(), weight_decay=0.0)
    for _ in range(70):
        optimizer.zero_grad()
        loss, values = policy.forward(batch)
        loss.backward()
        optimizer.step()
        policy.update()
    assert values["loss_text"] < 0.1
    assert policy.explain(live_batch(dataset, preprocessor, [3, 14])) == [TEXTS[0], TEXTS[1]]
    prefix, observation = policy._prefix, live_batch(dataset, preprocessor, [14])
    assert policy.supports_text_generation() and policy.generate_text(observation) == TEXTS[1]
    assert policy._prefix is prefix
    with pytest.raises(NotImplementedError, match="plans no subtasks"):
        policy.generate_text(observation | {"query_kind": "next_subtask"})


@pytest.mark.parametrize(
    ("texts", "text", "error", "message"),
    [
        ({9: "It opens."}, {}, StoreError, "labels episode 9, and 'tests/source' has 4 episodes"),
        ({0: ""}, {}, StoreError, "line 1: coc_text is ''"),
        ({}, {}, ValueError, "labels no frame"),
        (
            {1: "It moves."},
            {"max_tokens": 3},
            ValueError,
            "the label of frame 12 takes 8 tokens, more than text.max_tokens=3",
        ),
        ({1: "It is <ACT_2>."}, {}, ValueError, "the label of frame 12 holds '<ACT_2>'"),
        ({1: "The end<|im_end|>"}, {}, ValueError, "the label of frame 12 holds '<|im_end|>'"),
    ],
)
def test_bad_labels_are_named(tiny_companion, vlm, tmp_path, texts, text, error, message):
    with pytest.raises(error, match=message.replace("|", r"\|")):
        with_text(tiny_companion, vlm, tmp_path, texts, text)


def test_a_policy_without_its_labels_says_so(tiny_companion, vlm, tmp_path):
    policy, dataset, (preprocessor, _) = with_text(tiny_companion, vlm, tmp_path)
    policy.labels = None
    with pytest.raises(ValueError, match="give `dataset_meta`"):
        policy.forward(batch_of(dataset, preprocessor, [0]))


def test_labels_come_from_the_dataset_s_language_rows(tiny_companion, vlm, tmp_path):
    """What coc-label writes is what the text loss supervises: the row of style `coc` that is active at a frame."""
    reader = EpisodeReader(root=str(tiny_companion.source_root))
    labels = {episode: label_of(reader, episode, (0.0, 0.5)) for episode in (0, 1, 2)}
    root = write_copy(tiny_companion.source_root, tmp_path / "labelled", labels)
    policy, dataset, (preprocessor, _) = build(tiny_companion._replace(source_root=root), vlm, lambda_text=0.1)
    assert "language_persistent" in dataset.meta.features
    batch = preprocessor(lerobot_collate_fn([dataset[index] for index in FRAMES]))  # as lerobot-train collates them
    loss, logged, _ = step(policy, batch)
    assert logged["text_share"] == 0.75 and logged["loss_text"] > 0 and torch.isfinite(loss)
    active = labels_by_index(dataset.meta)(np.array(FRAMES))
    assert [text is None for text in active] == [False, False, False, True] and len(set(active)) == 4
    lines = {episode: active[number] for number, episode in enumerate((0, 1, 2))}
    same, other, (other_preprocessor, _) = with_text(tiny_companion, vlm, tmp_path, lines)
    from_jsonl = step(same, batch_of(other, other_preprocessor, FRAMES))[1]
    assert from_jsonl["loss_text"] == pytest.approx(logged["loss_text"], rel=1e-5)
