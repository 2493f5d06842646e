"""No way to run code from data: what the sources may not hold, looked for in their syntax trees."""

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PACKAGES = ("world_modality_core", "coc_tools", "wm_tools", "lerobot_policy_world_modality", "examples", "benchmarks")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "_pickle"}
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "pd.read_pickle",
    "pandas.read_pickle", "tempfile.mktemp", "torch.jit.load", "torch.hub.load", "shutil.unpack_archive",
}  # fmt: skip
KEYWORDS = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "autoescape": False, "verify": False}


def findings(source: str) -> list[str]:
    """What a source holds that it may not, with the line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{line}: import {name}" for name in names if name.partition(".")[0] in MODULES]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            is_on = isinstance(node.value, ast.Constant) and node.value.value is True
            found += [f"{line}: {node.target.id} = True"] * (node.target.id == "trust_remote_code" and is_on)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        values = {key: value.value for key, value in keywords.items() if isinstance(value, ast.Constant)}
        if name in NAMES or name in CALLS:
            found.append(f"{line}: {name}")
        if name == "torch.load" and values.get("weights_only") is not True:
            found.append(f"{line}: torch.load without weights_only=True")
        if name.endswith("Environment") and "jinja2" in name and values.get("autoescape") is not True:
            found.append(f"{line}: {name} without autoescape=True")
        if re.search(r"(^|\.)(Auto\w+|model_class)\.from_pretrained$", name):
            needed = ["trust_remote_code"] + ["use_safetensors"] * ("odel" in name)
            found += [f"{line}: {name} without {keyword}" for keyword in needed if keyword not in keywords]
        found += [f"{line}: {key}={bad}" for key, bad in KEYWORDS.items() if key in values and values[key] is bad]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_the_sources_hold_no_way_to_run_code_from_data(package):
    files = sorted((REPO / package).rglob("*.py"))
    assert files
    found = [f"{path.relative_to(REPO)}:{each}" for path in files for each in findings(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import a, dill", "import joblib.externals", "torch.load(p)",
        "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "eval(x)", "exec(x)", "yaml.load(x)",
        "subprocess.run(x, shell=True)", "os.system(x)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x)", "transformers.AutoConfig.from_pretrained(x)",
        "class A:\n    trust_remote_code: bool = True", "jinja2.Environment(loader=x)",
        "AutoModelForImageTextToText.from_pretrained(x, trust_remote_code=False)",
        "jinja2.Environment(autoescape=False)", "pd.read_pickle(x)", "shutil.unpack_archive(x)", "__import__(x)",
    ],
)  # fmt: skip
def test_each_of_them_would_be_found(source):
    assert findings(source)


def test_what_is_harmless_is_not_found():
    assert not findings("torch.load(p, weights_only=True)\npolicy.eval()\nre.compile(x)\nyaml.safe_load(x)\nnp.load(p)")


def test_templates_mark_nothing_as_safe():
    templates = [path for package in PACKAGES for path in (REPO / package).rglob("*.jinja")]
    assert len(templates) >= 5
    for path in templates:
        text = path.read_text()
        assert "safe" not in [word.strip() for part in text.split("|")[1:] for word in part.split("}}")[0].split()[:1]]
        assert "autoescape false" not in text and "{% autoescape" not in text


def test_remote_code_is_off_unless_asked_for():
    from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
    from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import (
        QwenWorldFPlusConfig,
    )

    for config in (QwenWorldFPlusConfig, WorldEvalConfig):
        assert config.__dataclass_fields__["trust_remote_code"].default is False
