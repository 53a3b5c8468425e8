"""Installing the plug-in breaks no import, in any order, and costs nothing until it is used."""

import subprocess
import sys

import pytest

ORDERS = [
    "import nequip",
    "import allegro",
    "import nequip.model.modify_utils",
    "import fastmlip, nequip.model",
    "import fastmlip_nequip_plugin, nequip.model",
    *(
        pytest.param(order, marks=pytest.mark.slow)
        for order in (
            "import nequip.nn",
            "import nequip.model",
            "import nequip.scripts.package",
            "import nequip.integrations.ase",
            "import nequip.model, fastmlip",
            "from nequip.utils.versions import get_current_code_versions",
        )
    ),
]
# the modifier must be there, fastmlip must be external, and nothing may have imported it yet
CHECK = """
import sys
early = "fastmlip" in sys.modules
import nequip.model.modify_utils as modify_utils
import nequip.scripts._package_utils as package_utils
assert modify_utils.get_all_modifiers.__wrapped__
assert not hasattr(modify_utils.get_all_modifiers.__wrapped__, "__wrapped__"), "wrapped twice"
assert "fastmlip" in package_utils._EXTERNAL_MODULES
assert "fastmlip_nequip_plugin" in package_utils._INTERNAL_MODULES
assert not package_utils._INTERNAL_MODULES & package_utils._EXTERNAL_MODULES
print(early)
"""


@pytest.mark.parametrize("order", ORDERS)
def test_import_order(order):
    if "allegro" in order:
        pytest.importorskip("allegro")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", order + CHECK], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == str("fastmlip" in order.replace("fastmlip_nequip", ""))


def test_fastmlip_works_without_nequip():
    """Importing fastmlip imports no host package, not even where one is installed."""
    code = "import sys, fastmlip; print({'nequip', 'allegro'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
