"""install() makes `import flash_attn` mean faops, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(program: str, *folders: Path) -> str:
    """What a fresh Python prints that finds the repository and ``folders``, in front of it, on its path."""
    path = os.pathsep.join([*map(str, folders), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


INSTALL = """
import importlib.metadata as metadata, importlib.util, sys
import faops.adapters.flash_attn as ours
assert not ours.installed() and importlib.util.find_spec("flash_attn") is None
finders = list(sys.meta_path)

part = "faops.adapters.flash_attn.bert_padding"
sys.modules[part] = None  # cannot be imported: then nothing is left behind
try:
    ours.install()
    raise SystemExit("installed")
except ImportError:
    del sys.modules[part]
assert not ours.installed() and sys.meta_path == finders
assert not [name for name in sys.modules if name.startswith("flash_attn")]

ours.install()
ours.install()
assert ours.installed() and len(sys.meta_path) == len(finders) + 1

import flash_attn, flash_attn_interface, flash_attn.flash_attn_interface
from flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn.bert_padding import pad_input, unpad_input, index_first_axis
from flash_attn.layers.rotary import RotaryEmbedding, apply_rotary_emb
from flash_attn.ops.triton.rotary import apply_rotary
from flash_attn_2_cuda import varlen_bwd
from flash_attn_3.flash_attn_interface import flash_attn_func as third
import faops.adapters.flash_attn.layers.rotary as rotary
assert flash_attn is ours and flash_attn_func is ours.flash_attn_func
assert RotaryEmbedding is rotary.RotaryEmbedding  # one module under two names, not two
assert third is flash_attn_interface.flash_attn_func is not flash_attn_func
for name in ("flash_attn", "flash_attn.layers.rotary", "flash_attn_interface", "flash_attn_3"):
    assert importlib.util.find_spec(name) is not None, name
for name in ("flash_attn", "flash-attn", "Flash.Attn"):
    assert metadata.version(name) == flash_attn.__version__
assert metadata.metadata("flash_attn")["Name"] == "flash-attn" and metadata.files("flash-attn") is None
assert metadata.packages_distributions()["flash_attn"] == ["flash-attn"]
for missing in ("flash_attn.cute", "flash_attn.ops.rms_norm", "flash_attn.losses"):
    try:
        __import__(missing)
        raise SystemExit(missing)
    except ModuleNotFoundError:
        pass

ours.uninstall()
ours.uninstall()
assert not ours.installed() and sys.meta_path == finders
assert not [name for name in sys.modules if name.startswith("flash_attn")]
assert importlib.util.find_spec("flash_attn") is None and "flash_attn" not in metadata.packages_distributions()
try:
    import flash_attn
    raise SystemExit("still there")
except ImportError:
    pass
ours.install()
import flash_attn
assert flash_attn is ours
print("done")
"""


def test_install_and_uninstall() -> None:
    assert run(INSTALL) == "done\n"


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A folder with what could be the real flash-attn, with its metadata."""
    package, info = tmp_path / "flash_attn", tmp_path / "flash_attn-9.9.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("from flash_attn.inside import who\n")
    (package / "inside.py").write_text("who = 'the real one'\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn\nVersion: 9.9\n")
    (info / "top_level.txt").write_text("flash_attn\n")
    return tmp_path


REFUSE = """
import importlib.metadata as metadata, sys
import faops.adapters.flash_attn as ours
from faops.errors import FaopsError
{first}
finders, modules = list(sys.meta_path), set(sys.modules)
try:
    ours.install()
    raise SystemExit("took its place")
except FaopsError as error:
    assert "force=True" in str(error) and "flash_attn" in str(error), error
assert not ours.installed() and sys.meta_path == finders
assert {{name for name in sys.modules if name.startswith("flash")}} == {{n for n in modules if n.startswith("flash")}}
import flash_attn
assert flash_attn.who == "the real one"

ours.install(force=True)
import flash_attn as second
assert second is ours and metadata.version("flash_attn") == ours.__version__
assert "flash_attn.inside" not in sys.modules
ours.uninstall()
import flash_attn as third
assert third is flash_attn and sys.modules["flash_attn.inside"].who == "the real one"
assert metadata.version("flash_attn") == "9.9"
print("done")
"""


@pytest.mark.parametrize("first", ["", pytest.param("import flash_attn", marks=pytest.mark.full)])
def test_a_real_one_stays_unless_forced(real: Path, first: str) -> None:
    assert run(REFUSE.format(first=first), real) == "done\n"


# transformers asks for a GPU before it uses flash-attn; that answer is the only thing changed here.
MODEL = """
import torch
import faops.adapters.flash_attn as ours
ours.install()
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import import_utils
import_utils.is_torch_cuda_available = lambda: True
import_utils.is_flash_attn_2_available.cache_clear()
assert import_utils.is_flash_attn_2_available()

called = set()
for name in ("flash_attn_func", "flash_attn_varlen_func"):
    def spied(*args, _name=name, _real=getattr(ours, name), **options):
        called.add(_name)
        return _real(*args, **options)
    spied.__signature__ = __import__("inspect").signature(getattr(ours, name))
    setattr(ours, name, spied)

config = LlamaConfig(vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=64)
torch.manual_seed({seed})
eager = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
flash = LlamaForCausalLM._from_config(config, attn_implementation="flash_attention_2").eval()
for parameter in eager.parameters():
    if parameter.dim() == 2:
        torch.nn.init.normal_(parameter, std=0.3)
flash.load_state_dict(eager.state_dict())
assert flash.config._attn_implementation == "flash_attention_2"
ids = torch.randint(0, 61, (3, 11))
padding = torch.ones_like(ids)
padding[0, :4] = padding[2, :7] = 0
with torch.no_grad():
    for mask in (None, padding):
        shown = torch.ones_like(ids).bool() if mask is None else mask.bool()
        one, other = (model(ids, attention_mask=mask).logits[shown] for model in (eager, flash))
        assert one.std() > 0.5
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)
    options = dict(attention_mask=padding, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(flash.generate(ids, **options), eager.generate(ids, **options))
print(*sorted(called))
"""


@pytest.mark.full
def test_transformers_runs_flash_attention_2_on_it(seeded: int) -> None:
    pytest.importorskip("transformers")
    assert run(MODEL.format(seed=seeded)).endswith("flash_attn_func flash_attn_varlen_func\n")
