"""From images, instructions and labels to what a Qwen-VL backbone reads, through the model's own processor.

    user: [image of each camera] instruction        assistant: <ACT_0> ... <ACT_{h-1}> [label <|im_end|>]

Nothing here is a module: no weights, nothing saved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoProcessor, PretrainedConfig

from lerobot_policy_world_modality.policies.qwen_world_fplus.backbone import refuse_remote_code
from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import QwenWorldFPlusConfig


@dataclass
class Sequences:
    """A batch for the backbone, n tokens long.

    Attributes:
        ids: (b, n) token ids.
        mask: (b, n) 1 for tokens, 0 for padding.
        positions: (3, b, n) time, height and width of the multimodal rotary embedding.
        pixel_values: (patches, c * 2 * patch^2) of all images, sample by sample.
        grid: (b * v, 3) patches of each image in time, height and width.
        act_at: (b, h) where the action tokens are; (b, 0) without.
        text_row: (m,) sample of each supervised token.
        text_at: (m,) position whose state predicts it: the one before it.
        text_ids: (m,) the supervised tokens.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    pixel_values: Tensor
    grid: Tensor
    act_at: Tensor
    text_row: Tensor
    text_at: Tensor
    text_ids: Tensor

    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the backbone."""
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "position_ids": self.positions,
            "pixel_values": self.pixel_values,
            "image_grid_thw": self.grid,
        }


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt: ids (n,) and positions (3, n), up to and including the action tokens; patches per image."""

    ids: Tensor
    positions: Tensor
    grid: Tensor


class QwenInputs:
    """Builds `Sequences`.

    Args:
        config: The policy's config.
        vlm_config: The backbone's.

    Raises:
        ValueError: if the processor can't be had, knows no action tokens although it should, or the image budget yields
            no tokens.
    """

    def __init__(self, config: QwenWorldFPlusConfig, vlm_config: PretrainedConfig):
        name = config.vlm_backbone
        try:
            self.processor = AutoProcessor.from_pretrained(
                name, revision=config.vlm_revision, trust_remote_code=config.runs_remote_code
            )
        except (OSError, ValueError) as error:
            refuse_remote_code(name, error)
            raise ValueError(
                f"vlm_backbone={name!r} has no processor that loads ({str(error).splitlines()[0]}); a folder must hold "
                "the tokenizer's and the image processor's files beside config.json"
            ) from error
        self.tokenizer = self.processor.tokenizer
        self.padding_side, self.context = config.padding_side, vlm_config.text_config.max_position_embeddings
        self.cameras = list(config.image_features)
        self.pixels = self._check_pixels(config)
        self.plain_special = set(self.tokenizer.all_special_tokens) | set(self.tokenizer.get_added_vocab())
        act = [f"<ACT_{i}>" for i in range(config.chunk_size)]
        self.tokenizer.add_tokens(act, special_tokens=True)
        self.act_ids = check_act_ids(self.tokenizer, act)
        self.act_text = "".join(act)
        self.special = self.plain_special | set(act)
        # Position ids of a sequence; the backbone's own function, set once there is one.
        self.rope_index: Callable | None = None
        self._prompts: dict[tuple, Prompt] = {}

    def _check_pixels(self, config: QwenWorldFPlusConfig) -> dict[str, int]:
        images = self.processor.image_processor
        side = images.patch_size * images.merge_size
        least = images.size["shortest_edge"] if config.min_pixels is None else config.min_pixels
        most = images.size["longest_edge"] if config.max_pixels is None else config.max_pixels
        if most < side**2:
            raise ValueError(
                f"max_pixels={most} yields no token: one takes {side}x{side} = {side**2} pixels in this backbone"
            )
        if least > most and config.min_pixels is not None:
            raise ValueError(f"min_pixels={least} is more than max_pixels={most}")
        return {"min_pixels": min(least, most), "max_pixels": most}

    def check_words(self, text: str, where: str) -> None:
        """Refuse a text that holds a special token: it would be read as one.

        Raises:
            ValueError: naming `where` and the token.
        """
        found = sorted(token for token in self.special if token in text)
        if found:
            raise ValueError(f"{where} holds {found[0]!r}, a special token of the backbone: {text[:80]!r}. Take it out")

    def prompt(self, task: str, images: Sequence[Tensor]) -> Prompt:
        """Tokenise a prompt, once per instruction and image sizes.

        Args:
            task: Instruction.
            images: (3, height, width) uint8 of each camera; only their sizes matter.

        Raises:
            ValueError: if the instruction is empty, or doesn't fit.
        """
        key = (task, *(tuple(image.shape) for image in images))
        if key in self._prompts:
            return self._prompts[key]
        if not task.strip():
            raise ValueError("a sample of the batch has an empty task; qwen_world_fplus needs the task as text")
        self.check_words(task, "a task")
        parts = [{"type": "image"} for _ in images] + [{"type": "text", "text": task}]
        chat = [{"role": "user", "content": parts}]
        text = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + self.act_text
        found = self.processor(
            text=[text], images=[image.cpu() for image in images], return_tensors="pt", **self.pixels
        )
        ids, grid = found["input_ids"][0], found["image_grid_thw"]
        if len(ids) > self.context:
            raise ValueError(
                f"task {task[:80]!r} with {len(images)} image(s) takes {len(ids)} tokens, more than the backbone's "
                f"context of {self.context}; lower max_pixels"
            )
        positions, _ = self.rope_index(
            found["input_ids"], mm_token_type_ids=found["mm_token_type_ids"], image_grid_thw=grid
        )
        self._prompts[key] = Prompt(ids, positions[:, 0], grid)
        logging.info(f"task {task!r}: {len(ids)} tokens, images of {[int(g.prod()) // 4 for g in grid]}")
        return self._prompts[key]

    def __call__(
        self,
        batch: dict[str, Tensor | list[str]],
        device: torch.device,
        labels: Sequence[Sequence[int] | None] | None = None,
        rows: Sequence[int] | None = None,
        has_act: bool = True,
    ) -> Sequences:
        """Build the backbone's inputs.

        Args:
            batch: Images (b, 3, height, width) in [0, 1] under the cameras' keys, and `task`.
            device: Where the backbone is.
            labels: Token ids of each sample's label, None where it has none.
            rows: Samples to take; all by default.
            has_act: Whether action tokens come before the label.

        Raises:
            ValueError: if a camera or the task is missing, or a sequence doesn't fit.
        """
        missing = [key for key in self.cameras if key not in batch]
        if missing:
            raise ValueError(f"the batch lacks the images {missing}; it has {sorted(k for k in batch if 'image' in k)}")
        tasks = batch.get("task")
        if tasks is None:
            raise ValueError("the batch has no `task`; qwen_world_fplus needs the task as text")
        # The dataset's frames were bytes: as such the processor rounds and clips them as in the backbone's training.
        stacks = [batch[key].mul(255).round().clamp(0, 255).to(torch.uint8) for key in self.cameras]
        tasks = [tasks] * len(stacks[0]) if isinstance(tasks, str) else tasks
        rows = range(len(stacks[0])) if rows is None else rows
        images = [[stack[row] for stack in stacks] for row in rows]
        pixels = self.processor.image_processor(
            images=[image for sample in images for image in sample], return_tensors="pt", **self.pixels
        )
        sequences = self._assemble(
            [self.prompt(tasks[row], sample) for row, sample in zip(rows, images, strict=True)],
            [None] * len(images) if labels is None else [labels[row] for row in rows],
            has_act,
        )
        return Sequences(
            **{name: value.to(device, non_blocking=True) for name, value in sequences.items()},
            pixel_values=pixels["pixel_values"].to(device),
            grid=pixels["image_grid_thw"].to(device, non_blocking=True),
        )

    def _assemble(self, prompts: list[Prompt], labels: list[Sequence[int] | None], has_act: bool) -> dict[str, Tensor]:
        """Append labels to prompts and fill the rows up to one length; all on the CPU."""
        h = len(self.act_ids)
        starts = [len(prompt.ids) - (0 if has_act else h) for prompt in prompts]  # where the label begins
        labels = [[] if label is None else list(label) for label in labels]
        lengths = [start + len(label) for start, label in zip(starts, labels, strict=True)]
        longest = max(lengths)
        if longest > self.context:
            row = lengths.index(longest)
            raise ValueError(
                f"sample {row} of the batch takes {longest} tokens, {len(labels[row])} of them its label; the "
                f"backbone's context has {self.context}. Lower text.max_tokens or max_pixels"
            )
        b = len(prompts)
        ids = torch.full((b, longest), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros(b, longest, dtype=torch.long)
        positions = torch.zeros(3, b, longest, dtype=torch.long)
        act_at, text = torch.empty(b, h if has_act else 0, dtype=torch.long), []
        for row, (prompt, label, start, length) in enumerate(zip(prompts, labels, starts, lengths, strict=True)):
            shift = longest - length if self.padding_side == "left" else 0
            label = torch.tensor(label, dtype=torch.long)
            ids[row, shift : shift + length] = torch.cat([prompt.ids[:start], label])
            mask[row, shift : shift + length] = 1
            after = prompt.positions[:, :start].max() + 1 + torch.arange(len(label))
            positions[:, row, shift : shift + length] = torch.cat(
                [prompt.positions[:, :start], after.expand(3, -1)], dim=1
            )
            if has_act:
                act_at[row] = (ids[row, :, None] == self.act_ids).float().argmax(0)
            at = torch.arange(len(label)) + shift + start - 1
            text.append(torch.stack([torch.full_like(at, row), at, label]))
        text_row, text_at, text_ids = torch.cat(text, dim=1)
        return {
            "ids": ids, "mask": mask, "positions": positions, "act_at": act_at, "text_row": text_row,
            "text_at": text_at, "text_ids": text_ids,
        }  # fmt: skip


def check_act_ids(tokenizer, tokens: list[str]) -> Tensor:
    """Ids of the action tokens.

    Raises:
        ValueError: if the tokenizer doesn't hold each of them as one token of its own, one after the other.
    """
    ids = tokenizer.convert_tokens_to_ids(tokens)
    consecutive = all(isinstance(i, int) for i in ids) and ids == list(range(ids[0], ids[0] + len(ids)))
    if not consecutive or tokenizer("".join(tokens), add_special_tokens=False)["input_ids"] != ids:
        raise ValueError(
            f"the tokenizer at {tokenizer.name_or_path!r} does not hold {tokens[0]} ... {tokens[-1]} as consecutive "
            f"tokens (ids {ids}); give the backbone's original tokenizer, without action tokens of others"
        )
    return torch.tensor(ids)
