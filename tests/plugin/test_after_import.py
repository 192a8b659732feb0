"""A function that runs once a module has been imported, and a quantizer that is registered so."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from nxm_hf.plugin import after_import
from tests.support.models import make_bert
from tests.support.saved_models import edit_config

# Registers a quantizer as nxm_hf would: it imports what a real one needs, and it is called in both orders of imports.
QUANTIZER = """
def register():
    from transformers import PreTrainedModel
    from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from nxm_hf.layers import find_layers
    from nxm_hf.storage.verify import verify

    @register_quantization_config("dummy")
    class DummyConfig(QuantizationConfigMixin):
        def __init__(self, **kwargs):
            self.quant_method = "dummy"

    @register_quantizer("dummy")
    class DummyQuantizer(HfQuantizer):
        requires_calibration = False
        is_serializable = is_trainable = True

        def _process_model_before_weight_loading(self, model, **kwargs):
            print("quantizer of", type(model).__name__)
"""
FIRST = "import nxm_hf"
THEN = "from nxm_hf.plugin import after_import; after_import('transformers.modeling_utils', register)"
LOAD = "from transformers import AutoModel; AutoModel.from_pretrained({folder!r})"


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [
        (FIRST, THEN, LOAD),
        ("import transformers", FIRST, THEN, LOAD),
        ("from transformers import AutoModel", FIRST, THEN, LOAD),
        ("from transformers import BertModel", FIRST, THEN, LOAD),
        ("from transformers import Trainer", FIRST, THEN, LOAD),
        (FIRST, "import importlib.util; importlib.util.find_spec('transformers.modeling_utils')", THEN, LOAD),
    ],
    ids=["nxm_hf first", "transformers first", "Auto first", "a model first", "the Trainer first", "looked for first"],
)
def test_a_quantizer_is_registered_whichever_library_is_imported_first(order, tmp_path):
    make_bert().save_pretrained(tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "dummy"})
    code = "\n".join([QUANTIZER, *order]).format(folder=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "quantizer of BertModel\n"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["nxm_hf.packing.file_names", "nxm_hf.inference.layout", "nxm_hf.storage.verify"])
def test_a_part_of_the_library_can_be_imported_before_transformers(module):
    registered = (
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING; print('nxm' in AUTO_QUANTIZER_MAPPING)"
    )
    code = f"import {module}; from transformers import PreTrainedModel; {registered}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == "True\n", run.stderr


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that can be imported, and was not."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    (tmp_path / "module_to_wait_for.py").write_text("value = 1\n")
    yield "module_to_wait_for"
    sys.modules.pop("module_to_wait_for", None)


def test_the_function_is_called_once_and_after_the_module_is_complete(module):
    seen = []
    before = [*sys.meta_path]
    after_import(module, lambda: seen.append(sys.modules[module].value))
    assert not seen
    importlib.import_module(module)
    importlib.reload(sys.modules[module])
    assert seen == [1] and sys.meta_path == before
    after_import(module, lambda: seen.append("at once"))
    assert seen == [1, "at once"]


def test_looking_for_the_module_calls_nothing_and_loses_nothing(module):
    seen = []
    after_import(module, lambda: seen.append(1))
    assert importlib.util.find_spec(module) is not None and not seen
    importlib.import_module(module)
    assert seen == [1]


def test_a_module_that_fails_is_waited_for_again(module, tmp_path):
    seen = []
    after_import(module, lambda: seen.append(1))
    path = Path(tmp_path, f"{module}.py")
    path.write_text("raise OSError('not now')\n")
    with pytest.raises(OSError, match="not now"):
        importlib.import_module(module)
    assert not seen
    path.write_text("value = 22\n")
    importlib.import_module(module)
    assert seen == [1]


def test_several_functions_wait_for_one_module(module):
    seen = []
    after_import(module, lambda: seen.append("first"))
    after_import(module, lambda: seen.append("second"))
    importlib.import_module(module)
    assert sorted(seen) == ["first", "second"]
