"""``fastmlip info FILE``, ``fastmlip strip``, and the command line's own options."""

import pickle
import sys
import zipfile

import pytest
import torch
from test_check import checkpoint, config  # noqa: F401 (fixtures)
from typer.testing import CliRunner

import fastmlip
from fastmlip.cli import app
from fastmlip.integrations import hosts
from fastmlip.integrations.nequip import files
from fastmlip.testing.process import run_python

pytestmark = pytest.mark.usefixtures("nequip_state")


def invoke(*arguments):
    wide = {"COLUMNS": "1000", "TERMINAL_WIDTH": "1000"}  # so that paths are not folded
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=wide)


def test_version_and_help():
    assert invoke("--version").output.strip() == f"fastmlip {fastmlip.__version__}"
    for command in ([], ["check"], ["bench"], ["info"]):
        result = invoke(*command, "-h")
        assert result.exit_code == 0 and "--help" in result.output


def test_info_of_a_checkpoint(checkpoint):  # noqa: F811
    about = files.metadata(checkpoint)
    assert about["kind"] == "checkpoint" and about["modifiers"] == "enable_FastMLIP"
    assert about["type_names"] == "['Cu']" and about["model_dtype"] == "float32"
    result = invoke("info", checkpoint)
    assert result.exit_code == 0 and "enable_FastMLIP" in result.output


class Payload:
    def __reduce__(self):
        return sys.exit, (3,)


def test_info_executes_nothing(tmp_path):
    torch.save({"hyper_parameters": {"model": Payload()}}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad\.ckpt cannot be read"):
        files.metadata(tmp_path / "bad.ckpt")
    with zipfile.ZipFile(tmp_path / "bad.nequip.zip", "w") as archive:
        archive.writestr("bad/model/package_metadata.txt", "r_max: 4.0\ntype_names: [Cu, Au]\n")
        archive.writestr("bad/model/model.pkl", pickle.dumps(Payload()))
    assert files.metadata(tmp_path / "bad.nequip.zip")["r_max"] == "4.0"
    with zipfile.ZipFile(tmp_path / "bad.nequip.pt2", "w") as archive:
        text = '{"r_max": "4.0", "nequip_custom_ops_libs": "no_such_library fastmlip"}'
        archive.writestr("bad/data/aotinductor/model/x.wrapper_metadata.json", text)
    about = files.metadata(tmp_path / "bad.nequip.pt2")
    assert "NOT installed" in about["needs no_such_library"]
    assert "is installed" in about["needs fastmlip"]
    (tmp_path / "cut.nequip.pt2").write_bytes(b"PK")
    result = invoke("info", tmp_path / "cut.nequip.pt2")
    assert result.exit_code == 2 and "cut.nequip.pt2" in result.output
    assert invoke("info", tmp_path / "none.ckpt").exit_code == 2


def test_strip_leaves_weights_and_other_modifiers(checkpoint, tmp_path):  # noqa: F811
    saved = torch.load(checkpoint, weights_only=True)
    stripped = tmp_path / "stock.ckpt"
    # ZBL of the test's config is a module of fastmlip's, which stock cannot load
    refused = invoke("strip", checkpoint, "-o", stripped)
    if refused.exit_code:
        assert "fastmlip.nn.ZBL" in refused.output
    settings = saved["hyper_parameters"]["model"]
    settings["modifiers"].insert(0, {"modifier": "modify_PerTypeScaleShift", "shifts": -2.0})
    settings["model"].update(pair_potential=None, per_type_energy_shifts=[-3.0])
    torch.save(saved, tmp_path / "both.ckpt")
    result = invoke("strip", tmp_path / "both.ckpt", "-o", tmp_path / "one.ckpt")
    assert result.exit_code == 0, result.output
    one = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert one["hyper_parameters"]["model"]["modifiers"] == settings["modifiers"][:1]
    shifts = one["hyper_parameters"]["model"]["model"]["per_type_energy_shifts"]
    assert shifts == {"Cu": -3.0}  # as NequIP takes them
    again = invoke("strip", tmp_path / "one.ckpt", "-o", tmp_path / "two.ckpt")
    assert again.exit_code == 2 and "needs no stripping" in again.output
    assert invoke("strip", checkpoint, "-o", tmp_path / "one.ckpt").exit_code == 2


def test_a_stripped_checkpoint_loads_without_fastmlip(checkpoint, tmp_path):  # noqa: F811
    """And with it: the same weights both ways."""
    result = invoke("strip", checkpoint, "-o", tmp_path / "stock.ckpt")
    assert result.exit_code == 0, result.output
    for name in (checkpoint, tmp_path / "stock.ckpt"):
        assert torch.load(name, weights_only=True)["hyper_parameters"].keys() >= {"model"}
    a, b = (hosts.load(p).model.state_dict() for p in (checkpoint, tmp_path / "stock.ckpt"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    run_python(
        """
        import sys
        for name in ("fastmlip", "fastmlip_nequip_plugin"):
            sys.modules[name] = None  # as if it were not installed
        import importlib.metadata as metadata
        every = metadata.entry_points
        def without(**kinds):
            found = every(**kinds)
            if kinds.get("group") != "nequip.extension":
                return found
            return [e for e in found if "fastmlip" not in e.value]
        metadata.entry_points = without
        from nequip.model import ModelFromCheckpoint
        from nequip.utils.global_state import set_global_state
        set_global_state()
        model = ModelFromCheckpoint(sys.argv[1])
        assert not any("Fast" in type(m).__name__ for m in model.modules())
        """,
        str(tmp_path / "stock.ckpt"),
    )
