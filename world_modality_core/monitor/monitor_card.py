"""The card of a monitor on the Hub: what it watches, what it promises, and how to use it."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from world_modality_core.monitor.saved_monitor import Monitor
from world_modality_core.precompute.cards import PACKAGE, TAG, code, encoder_rows, license_words, table


def monitor_card(monitor: Monitor, repo_id: str, license: str | None = None) -> str:
    """The text of README.md.

    Args:
        monitor: The monitor.
        repo_id: Where it goes.
        license: Identifier of the licence; None says that none was stated.
    """
    this = monitor.description
    stated = {"license": license} if license else {}
    data = ModelCardData(library_name="lerobot", tags=["robotics", "failure-detection", TAG], **stated)
    on = "rows of the policy that is watched" if "rows" in this.fitted_on else "recorded episodes"
    rows = [
        (
            "Promise",
            f"of successful episodes like these, at most {this.false_alarm_rate:.1%} have an alarm",
        ),
        ("Calibrated on", on),
        ("Tasks", ", ".join(map(code, this.tasks))),
        ("Scores", ", ".join(map(code, monitor.score_names))),
        ("Looks", f"every {this.future_stride} steps, {this.n_future_steps} of these ahead, at {this.fps:g} steps/s"),
        *encoder_rows(monitor.spec),
        ("Licence", license_words(license) if license else "nobody stated one"),
    ]
    return f"""---
{data.to_yaml()}
---

# A monitor for robot policies

It says when the world isn't as it was forecast. It reads observations, never the policy, and learned from successful
episodes only; made by {code(PACKAGE)}.

{table(rows)}

```bash
wm-eval --policy.path=POLICY --monitor={repo_id} ...
```
"""
