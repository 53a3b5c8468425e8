"""``fastmlip check``: exit statuses, wrong arguments, files that cannot be read."""

import json

import pytest
import test_check
import torch
from ase import Atoms
from ase.io import write
from nequip_cases import build
from test_check import invoke, only, said

import fastmlip

pytestmark = pytest.mark.usefixtures("nequip_state")
config, checkpoint, one_thread = test_check.config, test_check.checkpoint, test_check.one_thread


def test_exit_status_and_what_failed(monkeypatch, config, tmp_path):
    run = fastmlip.ops.radial_conv
    monkeypatch.setattr(fastmlip.ops, "radial_conv", lambda *o: run(*o) * float("nan"))
    file = tmp_path / "report.json"
    result = invoke(config, *only(["energies"]), "--json", file)
    assert result.exit_code == 1 and "failed: energies" in result.output
    assert json.loads(file.read_text())["results"][1]["error"] == "inf"


def test_wrong_arguments(config, tmp_path):
    assert invoke(tmp_path / "none.yaml").exit_code == 2
    (tmp_path / "notes.txt").write_text("")
    unknown = invoke(tmp_path / "notes.txt")
    assert unknown.exit_code == 2 and "a config (.yaml), a checkpoint" in unknown.output
    write(tmp_path / "h.xyz", Atoms("H"))
    species = invoke(config, tmp_path / "h.xyz")
    assert species.exit_code == 2 and "holds H; the model's types are Cu" in species.output
    (tmp_path / "empty.yaml").write_text("run: [train]\n")
    assert "training_module.model" in invoke(tmp_path / "empty.yaml").output
    with pytest.raises(ValueError, match=r"no check 'energy'.*did you mean 'energies'"):
        fastmlip.check(config, only=["energy"])
    with pytest.raises(ValueError, match="dtype: expected float32 or float64"):
        fastmlip.check(config, dtype="half")
    with pytest.raises(TypeError, match="got Linear"):
        fastmlip.check(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="in memory has its own"):
        fastmlip.check(build("tiny", "float64"), dtype="float32")
    with pytest.raises(ValueError, match="at least one"):
        fastmlip.check(build("tiny", "float64"), [])


def test_wrong_arguments_are_refused_before_work_starts(config, tmp_path, monkeypatch):
    monkeypatch.setattr(fastmlip, "check", lambda *a, **k: pytest.fail("work was started"))
    for arguments, message in (
        ((tmp_path,), "is a folder"),
        ((config, tmp_path / "none.xyz"), "there is no file"),
        ((config, "--json", tmp_path / "missing" / "x.json"), "cannot write"),
        ((config, "--json", tmp_path), "cannot write"),
        ((config, "--only", "force"), "did you mean 'forces'"),
        ((config, "--dtype", "half"), "expected float32 or float64"),
        ((config, "--device", "gpu"), "--device"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2 and message in said(result), arguments


def test_files_that_cannot_be_read_are_named(checkpoint, config, tmp_path):
    bytes_ = checkpoint.read_bytes()
    for name, content in (
        ("cut.ckpt", bytes_[: len(bytes_) // 2]), ("empty.ckpt", b""), ("no.ckpt", b"text"),
        ("cut.nequip.zip", b"PK\x03\x04"), ("cut.nequip.pt2", bytes_[:1000]),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        result = invoke(tmp_path / name)
        assert result.exit_code == 2 and name in result.output, result.output
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "not a checkpoint of NequIP" in invoke(tmp_path / "other.ckpt").output
    write(tmp_path / "none.extxyz", Atoms())
    for file, text in (("none.extxyz", "has no atoms"), ("no.ckpt", "cannot be read by ASE")):
        result = invoke(config, tmp_path / file)
        assert result.exit_code == 2 and text in said(result)
