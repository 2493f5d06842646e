"""What Meta-World's tasks call the bodies of their models, and what they want: the words of the true trace.

Bodies are called alike in most models ("obj" is the puck), so one table serves all tasks and few tasks need their own
entries. A task that is not listed still gets a trace: its bodies keep the model's names, and what happens to them is
named by how they move.
"""

from __future__ import annotations

from dataclasses import dataclass

from coc_tools.schema import RelationName

# What can't move and is not listed is "table".
_BODIES = {
    "tablelink": "table",
    "RetainingWall": "table",
    "RoundNut": "nut",
    "bsktball": "basketball",
    "basketballhoop": "basket",
    "obj": "puck",
    "bin_start": "first bin",
    "bin_goal": "second bin",
    "boxbody": "box",
    "boxbodytop": "cover",
    "button": "button",
    "buttonbox": "button box",
    "cmbutton": "button",
    "coffee_machine": "coffee machine",
    "dial": "dial",
    "door": "door",
    "door_link": "door",
    "lock_link": "lock",
    "drawer": "drawer case",
    "drawer_link": "drawer",
    "faucetBase": "faucet base",
    "faucet_link2": "faucet",
    "hammerbody": "hammer",
    "nail_link": "screw",
    "hdlprs": "handle box",
    "handle_link": "handle",
    "lever": "lever",
    "peg": "peg",
    "plug1": "peg",
    "plug_wall": "socket",
    "puck_channel": "plate",
    "puck_goal": "cabinet",
    "soccer_ball": "soccer ball",
    "goal_whole": "soccer goal",
    "stick": "stick",
    "object": "box",
    "shelf": "shelf",
    "wall": "wall",
    "window": "window frame",
    "windowb_a": "window",
}
_COFFEE = {"obj": "mug"}


@dataclass(frozen=True)
class TaskWords:
    """The words of one task.

    Attributes:
        bodies: body of the MuJoCo model -> what the task calls it.
        goal: what the task wants, as in "the task wants {goal}".
        verb: what moving a thing on its joint (a drawer, a button) is called here.
        target: where the gripper goes in a task that moves nothing.
    """

    bodies: dict[str, str]
    goal: str
    verb: RelationName | None = None
    target: str = "goal"


# task without its version -> (goal, verb of jointed things)
_TASKS: dict[str, tuple[str, RelationName | None]] = {
    "assembly": ("the nut on the peg", None),
    "basketball": ("the basketball in the basket", None),
    "bin-picking": ("the puck in the second bin", None),
    "box-close": ("the cover on the box", None),
    "button-press-topdown": ("the button pressed", "presses"),
    "button-press-topdown-wall": ("the button behind the wall pressed", "presses"),
    "button-press": ("the button pressed", "presses"),
    "button-press-wall": ("the button behind the wall pressed", "presses"),
    "coffee-button": ("the button of the coffee machine pressed", "presses"),
    "coffee-pull": ("the mug away from the coffee machine", None),
    "coffee-push": ("the mug under the coffee machine", None),
    "dial-turn": ("the dial turned by half a turn", "turns"),
    "disassemble": ("the nut off the peg", None),
    "door-close": ("the door closed", "closes"),
    "door-lock": ("the lock turned clockwise", "turns"),
    "door-open": ("the door open", "opens"),
    "door-unlock": ("the lock turned counter-clockwise", "turns"),
    "drawer-close": ("the drawer closed", "closes"),
    "drawer-open": ("the drawer open", "opens"),
    "faucet-close": ("the faucet turned clockwise", "turns"),
    "faucet-open": ("the faucet turned counter-clockwise", "turns"),
    "hammer": ("the screw driven in", "hits"),
    "hand-insert": ("the gripper in the hole", None),
    "handle-press-side": ("the handle down", "presses"),
    "handle-press": ("the handle down", "presses"),
    "handle-pull-side": ("the handle up", "pulls"),
    "handle-pull": ("the handle up", "pulls"),
    "lever-pull": ("the lever turned by 90 degrees", "turns"),
    "peg-insert-side": ("the peg in the hole", None),
    "peg-unplug-side": ("the peg out of the socket", None),
    "pick-out-of-hole": ("the puck out of the hole and at the goal", None),
    "pick-place-wall": ("the puck at the goal behind the wall", None),
    "pick-place": ("the puck at the goal", None),
    "plate-slide-back-side": ("the plate out of the cabinet", None),
    "plate-slide-back": ("the plate out of the cabinet", None),
    "plate-slide-side": ("the plate in the cabinet", None),
    "plate-slide": ("the plate in the cabinet", None),
    "push-back": ("the puck at the goal", None),
    "push-wall": ("the puck at the goal behind the wall", None),
    "push": ("the puck at the goal", None),
    "reach-wall": ("the gripper at the goal behind the wall", None),
    "reach": ("the gripper at the goal", None),
    "shelf-place": ("the puck on the shelf", None),
    "soccer": ("the soccer ball in the goal", None),
    "stick-pull": ("the box at the goal, moved with the stick", None),
    "stick-push": ("the box at the goal, moved with the stick", None),
    "sweep-into": ("the puck in the hole", None),
    "sweep": ("the puck off the table", None),
    "window-close": ("the window closed", "closes"),
    "window-open": ("the window open", "opens"),
}


def words_of(task: str) -> TaskWords:
    """The words of a Meta-World task such as `push-v3`; general ones for a task that is not listed."""
    name = task.rsplit("-v", 1)[0]
    goal, verb = _TASKS.get(name, ("its goal reached", None))
    bodies = {**_BODIES, **_COFFEE} if name.startswith("coffee-") else _BODIES
    return TaskWords(bodies, goal, verb, target="hole" if name == "hand-insert" else "goal")
