"""qwen_world_fplus on tiny models of the real Qwen classes: what acts, what it reads, what trains."""

import logging

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lerobot_policy_world_modality.policies.qwen_world_fplus.optimiser import parameter_groups
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from tests.device import DEVICE
from tests.plugin.helpers import batch_of, live_batch, open_gates
from tests.plugin.qwen_helpers import E0, build, step
from wm_tools.doctor.qwen_backbone import FAMILIES, make_qwen
from world_modality_core.configs import MemoryConfig, MemorySource
from world_modality_core.memory.gated_attention import Gate
from world_modality_core.memory.sources import EXCHANGING_SOURCES, TRAINING_SOURCES

HEADS = ["mse", "flow"]


@pytest.fixture(scope="module")
def vlms(tmp_path_factory):
    return {family: make_qwen(tmp_path_factory.mktemp("vlm") / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def vlm(vlms):
    return vlms["qwen3_vl"]


def head(kind):
    from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import ActionHeadConfig

    return ActionHeadConfig(kind=kind, n_heads=4, n_flow_steps=3)


def plan(policy, batch, seed=2):
    """The chunk that a policy plans from the current observation of a new episode."""
    policy.reset()
    torch.manual_seed(seed)
    return policy.predict_action_chunk(batch)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_at_closed_gates_it_is_e0_bit_for_bit(tiny_companion, vlms, family, kind):
    plain, dataset, (preprocessor, _) = build(tiny_companion, vlms[family], head=head(kind), **E0)
    world, *_ = build(tiny_companion, vlms[family], head=head(kind))
    assert plain.world.prophet is None and world.world.prophet is not None
    batch = batch_of(dataset, preprocessor, range(9, 14))
    _, expected, gradients = step(plain, batch)
    _, got, world_gradients = step(world, batch)
    assert got["loss_action"] == expected["loss_action"]
    for name, gradient in gradients.items():
        mine = world_gradients[name]
        assert (gradient is None and mine is None) or torch.equal(mine, gradient), name
    observation = live_batch(dataset, preprocessor, [3, 20])
    before = plan(world, observation)
    assert torch.equal(before, plan(plain, observation))
    open_gates(world)
    assert not torch.equal(plan(world, observation), before)


@pytest.mark.parametrize("gate", ["scalar", "per_head", "per_token"])
def test_the_memory_that_is_read_makes_a_difference(tiny_companion, vlm, gate):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, memory=MemoryConfig(gate=gate))
    batch = batch_of(dataset, preprocessor, [0, 4, 13, 20, 30, 40])
    open_gates(policy)
    chunks = {source: policy.plan_recorded(batch, source) for source in TRAINING_SOURCES if source != "scheduled"}
    sources = list(chunks)
    # An untrained Prophet predicts the current latent, at every step.
    same = {"pred", "copy_current", "reversed"}
    for i, one in enumerate(sources):
        for other in sources[i + 1 :]:
            is_equal = torch.equal(chunks[one], chunks[other])
            assert is_equal == ({one, other} <= same) or {one, other} <= set(EXCHANGING_SOURCES)
    with pytest.raises(ValueError, match="needs the recorded future"):
        policy.memory_of(WorldBatch(6), "oracle")
    losses = set()
    for source in ("pred", "zero", "oracle"):
        policy.config.memory.source = MemorySource(source)
        losses.add(float(policy.forward(batch)[0].detach()))
    assert len(losses) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_action_tokens_disturb_nothing(tiny_companion, vlms, family):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlms[family])
    plain = AutoModelForImageTextToText.from_pretrained(vlms[family]).to(DEVICE)
    embedding = policy.backbone.get_input_embeddings()
    assert torch.equal(embedding.weight, plain.get_input_embeddings().weight)
    assert policy.backbone.lm_head.weight is embedding.weight  # still tied
    ids = torch.arange(embedding.first_id, device=DEVICE)[None]
    assert torch.equal(embedding(ids), plain.get_input_embeddings()(ids))
    assert torch.equal(policy.backbone(input_ids=ids).logits, plain(input_ids=ids).logits)
    act = embedding(policy.inputs.act_ids[None].to(DEVICE))
    assert torch.equal(act[0], embedding.act_rows.weight)
    assert torch.pdist(act[0]).min() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_the_processor_s_own(tiny_companion, vlms, family):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlms[family])
    batch = batch_of(dataset, preprocessor, [3, 14, 33])
    assert policy.inputs.cameras == ["observation.images.top", "observation.images.wrist"]
    got = policy.inputs(batch, torch.device("cpu"))
    processor = policy.inputs.processor
    texts, images = [], []
    for i, task in enumerate(batch["task"]):
        parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": task}]
        chat = [{"role": "user", "content": parts}]
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        texts.append(text + "<ACT_0><ACT_1><ACT_2><ACT_3>")
        images += [(batch[camera][i] * 255).round().to(torch.uint8) for camera in policy.inputs.cameras]
    options = {"min_pixels": 256, "max_pixels": 1024, "padding": True, "return_tensors": "pt"}
    expected = processor(text=texts, images=images, **options).to("cpu")
    assert torch.equal(got.ids, expected["input_ids"])
    assert torch.equal(got.mask, expected["attention_mask"])
    assert torch.equal(got.pixel_values, expected["pixel_values"])
    assert torch.equal(got.grid, expected["image_grid_thw"])
    token_types = {name: expected[name] for name in ("mm_token_type_ids", "image_grid_thw", "attention_mask")}
    positions, _ = policy.backbone.model.get_rope_index(expected["input_ids"], **token_types)
    assert torch.equal(got.positions, positions)
    assert torch.equal(got.ids.gather(1, got.act_at), policy.inputs.act_ids.expand(3, -1))
    assert got.grid.prod(-1).tolist() == [16] * 6  # the pixel budget: 32 x 32 of the 64 x 64
    # Each image lands at its own place: another picture of the second camera changes its own patches only.
    other = dict(batch) | {"observation.images.wrist": batch["observation.images.wrist"].flip(-1)}
    is_same = (policy.inputs(other, torch.device("cpu")).pixel_values == got.pixel_values).all(-1)
    assert is_same.view(3, 2, 16)[:, 0].all() and not is_same.view(3, 2, 16)[:, 1].all(-1).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_left_and_right_padding_are_equivalent(tiny_companion, vlms, family):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlms[family], **E0)
    batch = batch_of(dataset, preprocessor, [3, 14, 33]) | {"task": ["push", "open the drawer now", "push the puck"]}
    states = {}
    for side in ("right", "left"):
        policy.inputs.padding_side = side
        sequences = policy.inputs(batch, torch.device(DEVICE))
        assert (sequences.mask == 0).any()
        states[side] = policy._see(batch, None)[0]
    torch.testing.assert_close(states["left"], states["right"], rtol=1e-5, atol=1e-5)
    alone = [policy._see({k: v[i : i + 1] for k, v in batch.items() if v is not None and k != "info" and
                          not isinstance(v, (float, bool, dict))}, None)[0] for i in range(3)]  # fmt: skip
    torch.testing.assert_close(torch.cat(alone), states["right"], rtol=1e-5, atol=1e-5)
    # The control: without the mask, left padding is seen.
    sequences.mask.fill_(1)
    seen = policy.backbone.model(**sequences.model_inputs()).last_hidden_state
    seen = seen.gather(1, sequences.act_at[..., None].expand(-1, -1, 32))
    assert (seen - states["right"]).abs().max() > 1e-3


@pytest.mark.parametrize("trains", ["full", "full_without_vision", "lora", "frozen"])
def test_every_group_that_should_train_gets_a_gradient_and_changes(tiny_companion, vlm, trains, caplog):
    caplog.set_level(logging.INFO)
    mode = trains.split("_")[0]
    options = {"train_backbone": mode, "freeze_vision": trains == "full_without_vision", "lambda_align": 0.1}
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, **options)
    expected = {"action tokens", "proprioception", "action head", "Prophet", "memory reader", "alignment", "gates"}
    expected |= {"full": {"vision tower", "language model", "token embeddings"}, "lora": {"adapters"}}.get(mode, set())
    expected -= {"vision tower"} if trains == "full_without_vision" else set()
    batch = batch_of(dataset, preprocessor, [0, 4, 13, 20, 30, 40])
    groups = parameter_groups(policy)
    before = {name: p.detach().clone() for group in groups.values() for name, p in group.items()}
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-2)
    seen = set()
    for _ in range(4):  # a shut gate, and an adapter at 0, let nothing through in the first
        optimizer.zero_grad()
        policy.forward(batch)[0].backward()
        seen |= {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
        policy.update()
    for group, parameters in groups.items():
        changed = {name for name, p in parameters.items() if not torch.equal(p, before[name])}
        if group in expected:
            # Every single one, except those that attention cannot see the effect of (a key's bias) or that no word
            # of the batch uses.
            idle = {name for name in set(parameters) - seen if not name.endswith("k_proj.bias")}
            assert not idle, (group, idle)
            assert changed, group
        else:
            assert not changed and not set(parameters) & seen, group
    table = caplog.text.split("what trains:")[1]
    rows = {line[:18].strip(): line.split()[-1] for line in table.splitlines()[2 : 2 + len(groups)]}
    assert {group for group, rate in rows.items() if rate != "frozen"} == expected
    rates = {rate["lr"] for rate in optimizer.param_groups}
    assert rates == {1e-4, 1e-3} | ({1e-5} if mode == "full" else set())
    n_optimised = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert n_optimised == sum(p.numel() for p in policy.parameters() if p.requires_grad)


def test_a_frozen_backbone_and_its_table_stay_bit_equal(tiny_companion, vlm):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, train_backbone="frozen")
    plain = AutoModelForImageTextToText.from_pretrained(vlm).to(DEVICE)
    batch = batch_of(dataset, preprocessor, [0, 13, 30])
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-2, weight_decay=0.1)
    rows = policy.backbone.get_input_embeddings().act_rows.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        policy.forward(batch)[0].backward()
        optimizer.step()
    assert not torch.equal(policy.backbone.get_input_embeddings().act_rows.weight, rows)
    mine = policy.backbone.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(mine[name], value), name


@pytest.mark.parametrize(("kind", "trains"), [("mse", "lora"), ("flow", "full")])
def test_it_learns_a_small_batch(tiny_companion, vlm, kind, trains):
    options = {"train_backbone": trains, "optimizer_lr": 3e-3, "backbone_lr_factor": 1.0}
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, head=head(kind), **options)
    batch = batch_of(dataset, preprocessor, [0, 4, 13, 20])
    optimizer = torch.optim.AdamW(policy.get_optim_params(), weight_decay=0.0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, logged = policy.forward(batch)
        loss.backward()
        optimizer.step()
        policy.update()
        losses.append(logged["loss_action"])
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    torch.manual_seed(0)
    error = (policy.plan_recorded(batch) - batch["action"]).square().mean()
    assert error < 0.7 * batch["action"].square().mean()


def test_gradient_checkpointing_changes_no_gradient(tiny_companion, vlm):
    plain, dataset, (preprocessor, _) = build(tiny_companion, vlm)
    again, *_ = build(tiny_companion, vlm, gradient_checkpointing=True)
    batch = batch_of(dataset, preprocessor, [0, 13])
    calls = count_calls(again.backbone.model.language_model.layers[0].mlp)
    _, _, expected = step(plain, batch)
    _, _, got = step(again, batch)
    assert calls == [2]  # once more in the backward pass
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


def test_micro_batches_accumulate_the_gradient_of_the_batch(tiny_companion, vlm):
    plain, dataset, (preprocessor, _) = build(tiny_companion, vlm)
    parts, *_ = build(tiny_companion, vlm, micro_batch_size=2)
    batch = batch_of(dataset, preprocessor, [0, 13, 14, 30, 50])
    seen = []
    parts.backbone.model.language_model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    loss, values, expected = step(plain, batch)
    got_loss, got_values, got = step(parts, batch)
    assert seen == [2, 2, 1] + [1, 2, 2]  # forward, and again in the backward pass, the last part first
    torch.testing.assert_close(got_loss, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-5)


def count_calls(module) -> list[int]:
    """How often a module runs from here on, in a list of one number."""
    calls = [0]
    forward = module.forward  # hooks would not see a recomputed call

    def counted(*args, **kwargs):
        calls[0] += 1
        return forward(*args, **kwargs)

    module.forward = counted
    return calls


def test_fsdp_is_told_which_layers_to_shard(tiny_companion, vlms):
    for vlm in vlms.values():
        policy, *_ = build(tiny_companion, vlm, **E0)
        names = [type(module).__name__ for module in policy.modules()]
        assert len(policy._no_split_modules) == 2 and all(names.count(name) == 2 for name in policy._no_split_modules)


def test_bfloat16_keeps_what_trains_in_fp32(tiny_companion, vlm):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, train_backbone="lora", dtype="bfloat16")
    assert policy.backbone.model.language_model.layers[0].mlp.up_proj.weight.dtype is torch.bfloat16
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    policy.to(torch.bfloat16)
    assert {p.dtype for m in policy.modules() if isinstance(m, Gate) for p in m.parameters()} == {torch.float32}
    full, *_ = build(tiny_companion, vlm, dtype="bfloat16")
    assert {p.dtype for p in full.parameters()} == {torch.float32}
    batch = batch_of(dataset, preprocessor, [0, 13])
    with torch.autocast("cpu", torch.bfloat16):  # what accelerate does for `dtype`
        loss, _ = full.forward(batch)
    loss.backward()
    assert loss.isfinite() and full.action_head.net[1].weight.grad.abs().sum() > 0
    assert full.plan_recorded(batch).isfinite().all()


def test_one_backbone_forward_for_eight_steps_of_a_rollout(tiny_companion, vlm):
    options = {"chunk_size": 8, "n_action_steps": 8}
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, **options)
    vision, language = count_calls(policy.backbone.model.visual), count_calls(policy.backbone.model.language_model)
    open_gates(policy)
    torch.nn.init.normal_(policy.world.prophet.head.weight)  # so that more than the current frame counts
    policy.reset()
    n_steps, seen = 16, []
    for t in range(n_steps):
        seen.append(policy.select_action(live_batch(dataset, preprocessor, [13 + t, 43 + t])))  # two episodes, one task
    assert vision == language == [n_steps // 8]
    assert all(action.shape == (2, 4) for action in seen)
    # The second plan remembers frames from before it: a fresh start at the same frame plans otherwise.
    policy.reset()
    fresh = policy.select_action(live_batch(dataset, preprocessor, [21, 51]))
    assert not torch.equal(fresh, seen[8])


def test_live_plans_are_recorded_plans(tiny_companion, vlm):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm)
    open_gates(policy)
    recorded = policy.plan_recorded(batch_of(dataset, preprocessor, [4]), "pred")
    policy.reset()
    for t in range(5):
        live = policy.predict_action_chunk(live_batch(dataset, preprocessor, [t]))
    torch.testing.assert_close(live, recorded, rtol=1e-3, atol=1e-3)
