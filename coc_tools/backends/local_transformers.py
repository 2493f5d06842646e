"""Labels by a vision-language model of `transformers` in this process: Qwen3-VL, Qwen2.5-VL, and what loads like them.

Episodes are generated in batches, padded on the left. Under `accelerate launch` every process labels a shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from accelerate.utils import set_seed
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from coc_tools.backends import BackendUnusable, LabelRequest, Reply
from coc_tools.backends.chat import messages
from coc_tools.config import LocalConfig, SamplingConfig
from world_modality_core.io.processes import join_processes


class LocalLabeller:
    """Generates replies in batches."""

    name = "local"
    needs_images = True
    n_workers = 1

    def __init__(self, config: LocalConfig, sampling: SamplingConfig) -> None:
        """Load model and processor.

        Raises:
            BackendUnusable: if they can't be loaded, or can't talk about images.
        """
        self.config, self.model, self.batch_size = config, config.model, config.batch_size
        self.sampling = {**asdict(sampling), "dtype": config.dtype}
        self._sampling = sampling
        device = join_processes(config.device)[1]
        try:
            self._processor = AutoProcessor.from_pretrained(
                config.model, revision=config.revision, trust_remote_code=False
            )
            self._model = AutoModelForImageTextToText.from_pretrained(
                config.model, revision=config.revision, dtype=config.dtype, device_map=config.device_map,
                trust_remote_code=False, use_safetensors=True,
            )  # fmt: skip
            if config.device_map is None:
                self._model.to(device)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise BackendUnusable(
                f"local.model={config.model!r}, local.revision={config.revision!r}: cannot be loaded "
                f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
            ) from error
        if getattr(self._processor, "chat_template", None) is None or not hasattr(self._processor, "image_processor"):
            raise BackendUnusable(f"local.model={config.model!r}: has no processor for chats with images")
        self._model.eval()
        # New tokens start at the same place for all of a batch.
        self._processor.tokenizer.padding_side = "left"
        self.revision = getattr(self._model.config, "_commit_hash", None) or config.revision
        set_seed(sampling.seed)

    @torch.inference_mode()
    def label_many(self, requests: Sequence[LabelRequest]) -> list[Reply]:
        """Generate the replies of one batch."""
        chats = [messages(request, _image_part) for request in requests]
        images = [[image.image for image in request.images] for request in requests]
        texts = self._processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        inputs = self._processor(text=texts, images=images, padding=True, return_tensors="pt").to(self._model.device)
        is_drawn = self._sampling.temperature > 0
        try:
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=self._sampling.max_tokens,
                do_sample=is_drawn,
                temperature=self._sampling.temperature if is_drawn else None,
                top_p=None,
                top_k=None,
            )
        except torch.cuda.OutOfMemoryError as error:
            raise BackendUnusable(
                f"local.batch_size={self.batch_size}: out of GPU memory; take a smaller one, or fewer frames "
                "(keyframes.n_frames), or spread the model with --local.device_map=auto"
            ) from error
        new = tokens[:, inputs["input_ids"].shape[1] :]
        ends = self._end_tokens()
        replies = []
        for row, read in zip(new, inputs["attention_mask"].sum(dim=1).tolist(), strict=True):
            stop = next((i for i, token in enumerate(row.tolist()) if token in ends), None)
            text = self._processor.tokenizer.decode(row[:stop], skip_special_tokens=True)
            n_new = len(row) if stop is None else stop + 1
            replies.append(Reply(text, int(read), n_new, is_cut_off=stop is None))
        return replies

    def _end_tokens(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        ends = self._processor.tokenizer.eos_token_id if ends is None else ends
        return set(ends) if isinstance(ends, list) else {ends}

    def close(self) -> None:
        """Let go of the model."""
        self._model = None


def _image_part(image: Image.Image) -> dict:
    return {"type": "image"}
