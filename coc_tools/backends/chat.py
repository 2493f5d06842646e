"""The conversation that both model backends hold about an episode."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from coc_tools.backends import LabelRequest
from coc_tools.request import quoted


def messages(request: LabelRequest, image_part: Callable[[Image.Image], dict]) -> list[dict]:
    """The chat of a request: prompt, images and data; on a further attempt also the last reply and its fault.

    Args:
        request: The request.
        image_part: PIL image -> its content part in the form that the backend reads.
    """
    content = [image_part(image.image) for image in request.images]
    chat = [
        {"role": "system", "content": [{"type": "text", "text": request.prompt}]},
        {"role": "user", "content": [*content, {"type": "text", "text": f"The data of the episode:\n{request.data}"}]},
    ]
    if request.rejected is not None:
        again = (
            f"Your reply was not accepted. The problem, as a JSON string: {quoted(request.rejected.error)}\n"
            "Reply again with the whole corrected JSON object and nothing else."
        )
        reply = request.rejected.reply.replace("<|", "< |") or "(empty)"
        chat += [
            {"role": "assistant", "content": [{"type": "text", "text": reply}]},
            {"role": "user", "content": [{"type": "text", "text": again}]},
        ]
    return chat
