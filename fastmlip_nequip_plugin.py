"""What NequIP loads from fastmlip (entry point ``nequip.extension: init_always``).

NequIP imports this module in the middle of its own import, when most of ``nequip`` cannot be
imported yet, and every time, also for users who never ask for fastmlip. So it imports neither
``nequip`` nor ``fastmlip``; it waits for two of NequIP's modules and then

* offers the modifier ``enable_FastMLIP`` for every model that has a module to swap, the ones from
  packages, which bring their own copies of NequIP's classes, included;
* tells ``nequip-package`` that ``fastmlip`` is a library to import, not code to copy.

It must stay a top-level module beside ``fastmlip``: ``nequip-package`` copies the package that an
entry point names, and what it copies cannot be an external library too.
"""

import importlib.abc
import sys
from functools import wraps


def _offer_modifiers(modify_utils):
    collect = modify_utils.get_all_modifiers

    @wraps(collect)
    def get_all_modifiers(module, _all_modifiers=None):
        found = collect(module, _all_modifiers)
        if _all_modifiers is None:  # the outermost call of a recursion
            from fastmlip.integrations.modifiers import modifiers

            found.update(modifiers(module))
        return found

    modify_utils.get_all_modifiers = get_all_modifiers


def _declare_external(package_utils):
    package_utils.register_libraries_as_external_for_packaging(extern_modules=["fastmlip"])


_AFTER_IMPORT = {
    "nequip.model.modify_utils": _offer_modifiers,
    "nequip.scripts._package_utils": _declare_external,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the modules above as everyone else would, and calls back when they have run."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _AFTER_IMPORT:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                _AFTER_IMPORT[fullname](module)

            spec.loader.exec_module = exec_module
        return spec


for _name, _callback in _AFTER_IMPORT.items():
    if _name in sys.modules:
        _callback(sys.modules[_name])
sys.meta_path.insert(0, _AfterImport())
