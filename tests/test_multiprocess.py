"""Workers of a DataLoader, forked and spawned, and two processes that train one model."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fastmlip.testing import OPERATORS, derivatives

# the operators are used with threads in the parent first; workers have one thread each


class Results(Dataset):
    """Values and derivatives of one operator after the other."""

    def __len__(self):
        return len(OPERATORS)

    def __getitem__(self, index):
        table = list(OPERATORS.values())[index]
        case = next(iter(table.cases.values()))
        inputs = table.make_inputs(case, **table.large)
        problem = getattr(case, "problem", case)
        return [d.value for d in derivatives(lambda *t: table.op(*t, problem=problem), inputs, 2)]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader_compute_the_same_bits(context):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        here = [Results()[i] for i in range(len(OPERATORS))]
    finally:
        torch.set_num_threads(before)
    loader = DataLoader(
        Results(), batch_size=None, num_workers=2, multiprocessing_context=context, timeout=120
    )
    for mine, theirs in zip(here, loader, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


# ---------------------------------------------------------------- two processes, one model

OVERRIDES = (
    "training_module.optimizer._target_=torch.optim.SGD",
    "training_module.optimizer.lr=0.01",
    "~training_module.val_metrics.coeffs.forces_mae",
)


def trained(folder, processes, strategy=None, modifiers="[{modifier: enable_FastMLIP}]"):
    """Weights after one step of SGD on four frames, shared between the processes."""
    from test_nequip_workflows import CONFIG, weights

    folder.mkdir()
    config = CONFIG.format(modifiers=modifiers, compile_mode="eager", sanity=0)
    (folder / "conf.yaml").write_text(config)
    overrides = [*OVERRIDES, f"+trainer.devices={processes}"]
    overrides += [f"data.train_dataloader.batch_size={4 // processes}"]
    overrides += [f"+trainer.strategy={strategy}"] if strategy else []
    result = subprocess.run(
        [sys.executable, "-m", "nequip.scripts.train", "-cp", folder, "-cn", "conf", *overrides],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    if processes > 1:
        assert "2 processes" in result.stderr + result.stdout
    return weights(folder / "last.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "{_target_: nequip.train.SimpleDDPStrategy}"])
def test_two_processes_take_the_same_step_as_one(strategy, tmp_path):
    one, two = trained(tmp_path / "one", 1), trained(tmp_path / "two", 2, strategy)
    assert one.keys() == two.keys() and len(one) > 5
    for key, value in one.items():
        assert (two[key] - value).abs().max() <= 1e-10 * value.abs().max().clamp(min=1), key
