"""Chain-of-causality text: labels by `index`, the loss on exactly their tokens, and greedy generation after the act."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from lerobot.datasets import LeRobotDatasetMetadata
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import TextConfig
from lerobot_policy_world_modality.policies.qwen_world_fplus.inputs import QwenInputs, Sequences


class Labels:
    """The label's tokens of each frame.

    Args:
        config: Where the labels are.
        inputs: Whose tokenizer they are for.
        dataset_meta: The dataset that is trained on.

    Raises:
        ValueError: if there are no labels, or one is too long or holds a special token, with its first frame.
    """

    def __init__(self, config: TextConfig, inputs: QwenInputs, dataset_meta: LeRobotDatasetMetadata):
        from coc_tools.language_rows import labels_by_index, labels_from_jsonl

        jsonl = config.jsonl
        self._lookup = labels_by_index(dataset_meta) if jsonl is None else labels_from_jsonl(jsonl, dataset_meta)
        which = self._lookup.ids(torch.arange(dataset_meta.total_frames))
        n_labelled = int((which >= 0).sum())
        first_frame = dict(zip(*np.unique(which, return_index=True), strict=True))
        if not n_labelled:
            place = f"text.jsonl={jsonl!r}" if jsonl else f"{dataset_meta.repo_id!r} (language rows of style 'coc')"
            raise ValueError(
                f"lambda_text is positive, but {place} labels no frame; make labels with `coc-label`, name their file "
                "with --policy.text.jsonl=FILE, or set --policy.lambda_text=0"
            )
        end = inputs.tokenizer.eos_token_id
        self._tokens: list[list[int]] = []
        for i, text in enumerate(self._lookup.texts):
            where = f"the label of frame {first_frame[i]}"
            inputs.check_words(text, where)
            tokens = inputs.tokenizer(text, add_special_tokens=False)["input_ids"] + [end]
            if len(tokens) > config.max_tokens:
                raise ValueError(
                    f"{where} takes {len(tokens)} tokens, more than text.max_tokens={config.max_tokens}: {text[:80]!r}"
                )
            self._tokens.append(tokens)
        share = n_labelled / len(which)
        logging.info(f"text loss: {len(self._tokens)} different labels on {n_labelled} frames ({share:.1%})")

    def __call__(self, index: Tensor) -> list[list[int] | None]:
        """Token ids of the label that is active at each frame (b,) of `index`, its end included; None without one."""
        return [None if i < 0 else self._tokens[i] for i in self._lookup.ids(index.cpu())]


def text_loss(model: PreTrainedModel, states: Tensor, sequences: Sequences) -> Tensor:
    """Cross-entropy per sample (b,) of its label's tokens, first and last included; 0 for a sample without a label.

    The LM head is computed at these positions only.

    Args:
        model: The backbone with its LM head.
        states: (b, n, d) last hidden states.
        sequences: What they are of.
    """
    logits = model.lm_head(states[sequences.text_row, sequences.text_at])
    entropy = F.cross_entropy(logits.float(), sequences.text_ids, reduction="none")
    total = entropy.new_zeros(len(states)).index_add(0, sequences.text_row, entropy)
    return total / torch.bincount(sequences.text_row, minlength=len(states)).clamp(min=1)


@dataclass
class Prefix:
    """What an explanation goes on from.

    Attributes:
        cache: Keys and values of the sequence, n tokens long.
        mask: (b, n) 1 for tokens that the explanation sees.
        position: (b,) position of its first token.
        state: (b, d) state that predicts it.
    """

    cache: Cache
    mask: Tensor
    position: Tensor
    state: Tensor


def prefix_of(sequences: Sequences, states: Tensor, cache: Cache, sees_act: bool) -> Prefix:
    """The prefix of an explanation of a plan.

    Args:
        sequences: Prompt and action tokens.
        states: (b, n, d) their states.
        cache: Their keys and values.
        sees_act: Whether the text follows the action tokens ("joint_after_act"), or the prompt ("separate").
    """
    mask, rows = sequences.mask, torch.arange(len(states), device=states.device)
    if sees_act:
        last = sequences.act_at[:, -1]
    else:
        last = sequences.act_at[:, 0] - 1
        mask = mask.scatter(1, sequences.act_at, 0)
    position = sequences.positions[0, rows, last] + 1
    return Prefix(cache, mask, position, states[rows, last])


@torch.no_grad()
def generate(model: PreTrainedModel, prefix: Prefix, n_words: int, end: int, max_tokens: int) -> list[list[int]]:
    """Generate greedily from a plan's prefix, which stays as it was.

    Args:
        model: The backbone with its LM head.
        prefix: Of the plan.
        n_words: Token ids below this may be said: the tokenizer's own, no action tokens.
        end: Id of the token that ends a turn.
        max_tokens: Most tokens.

    Returns:
        Token ids for each sample, without the end.
    """
    n, mask, state = prefix.cache.get_seq_length(), prefix.mask, prefix.state
    said, is_done = [], torch.zeros(len(state), dtype=torch.bool, device=state.device)
    for i in range(max_tokens):
        token = model.lm_head(state)[:, :n_words].argmax(-1).masked_fill(is_done, end)
        said.append(token)
        is_done |= token == end
        if bool(is_done.all()) or i == max_tokens - 1:
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        state = model.model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=(prefix.position + i).expand(3, -1)[..., None],
            past_key_values=prefix.cache,
            use_cache=True,
        ).last_hidden_state[:, 0]
    prefix.cache.crop(n)
    rows = torch.stack(said, dim=1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
