"""What NequIP loads from fastmlip (entry point ``nequip.extension: init_always``).

NequIP imports this module in the middle of its own import, when most of ``nequip`` cannot be
imported yet, and every time, also for users who never ask for fastmlip. So it imports neither
``nequip`` nor ``fastmlip``; it waits for three of NequIP's modules and then

* offers the modifier ``enable_FastMLIP`` for every model that has a module to swap, the ones from
  packages, which bring their own copies of NequIP's classes, included;
* lets a config that asks for it give scales and shifts as lists, in the order of ``type_names``;
* keeps torch from calling a compiled model that uses fastmlip outdated, which it is not;
* tells ``nequip-package`` that ``fastmlip`` is a library to import, not code to copy.

Where any of this fails, as with a NequIP of another version, it warns once and steps aside: NequIP
then works as if fastmlip were not there.

It must stay a top-level module beside ``fastmlip``: ``nequip-package`` copies the package that an
entry point names, and what it copies cannot be an external library too.
"""

import importlib.abc
import importlib.metadata
import sys
import threading
import warnings
from functools import wraps

_NO_MODIFIERS = "its modifiers, such as enable_FastMLIP, are not offered"
_NO_LISTS = "a config's scales and shifts cannot be lists"
_NO_QUIET = "torch may say of its compiled models that they are outdated, which means nothing"
_NO_PACKAGES = "nequip-package cannot package models that use it"
_warned = set()


def _step_aside(what, error):
    """Warn once that ``what`` does not work, and never raise."""
    if what in _warned:
        return
    _warned.add(what)
    versions = []
    for name in ("fastmlip", "nequip"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except Exception:
            versions.append(f"{name} of an unknown version")
    text = f"{' with '.join(versions)}: {what} ({type(error).__name__}: {error})"
    try:
        warnings.warn(text, stacklevel=2)
    except Warning:  # where warnings are errors
        print(text, file=sys.stderr)


def _offer_modifiers(modify_utils):
    collect = modify_utils.get_all_modifiers
    inside = threading.local()  # it calls itself for the modules in a model

    @wraps(collect)
    def get_all_modifiers(*args, **kwargs):
        if getattr(inside, "call", False):
            return collect(*args, **kwargs)
        inside.call = True
        try:
            found = collect(*args, **kwargs)
        finally:
            inside.call = False
        try:
            from fastmlip.integrations.modifiers import modifiers

            found.update(modifiers(args[0] if args else kwargs["module"], found))
        except Exception as error:
            _step_aside(_NO_MODIFIERS, error)
        return found

    modify_utils.get_all_modifiers = get_all_modifiers


def _take_lists(modify_utils):
    modify = modify_utils.modify

    @wraps(modify)
    def with_lists(*args, **kwargs):
        try:
            asked = "enable_FastMLIP" in str((args, kwargs))
            if asked:
                from fastmlip.integrations.nequip.energies import by_type_name
        except Exception as error:
            _step_aside(_NO_LISTS, error)
            asked = False
        if not asked:
            return modify(*args, **kwargs)
        # its errors are about the user's config
        if args and isinstance(args[0], dict):
            args = (by_type_name(args[0]), *args[1:])
        elif isinstance(kwargs.get("model"), dict):
            kwargs["model"] = by_type_name(kwargs["model"])
        return modify(*args, **kwargs)

    modify_utils.modify = with_lists


def _load_quietly(aoti_metadata):
    import_libraries = aoti_metadata.import_custom_ops_libs

    @wraps(import_libraries)
    def import_custom_ops_libs(pt2_path, *args, **kwargs):
        result = import_libraries(pt2_path, *args, **kwargs)
        if "fastmlip" in sys.modules:
            try:
                from fastmlip.integrations.nequip.files import expect_list_of_libraries

                expect_list_of_libraries(pt2_path)
            except Exception as error:
                _step_aside(_NO_QUIET, error)
        return result

    aoti_metadata.import_custom_ops_libs = import_custom_ops_libs


def _declare_external(package_utils):
    package_utils.register_libraries_as_external_for_packaging(extern_modules=["fastmlip"])


_AFTER_IMPORT = {
    "nequip.model.modify_utils": ((_offer_modifiers, _NO_MODIFIERS), (_take_lists, _NO_LISTS)),
    "nequip.utils.aoti_metadata": ((_load_quietly, _NO_QUIET),),
    "nequip.scripts._package_utils": ((_declare_external, _NO_PACKAGES),),
}


def _call_back(module):
    for callback, what in _AFTER_IMPORT[module.__name__]:
        try:
            callback(module)
        except Exception as error:
            _step_aside(what, error)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the modules above as everyone else would, and calls back when they have run."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _AFTER_IMPORT:
            return None
        others = (f for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec), None)
        if spec is None:
            return None
        try:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                if module.__name__ == fullname:  # some loaders load several
                    _call_back(module)

            spec.loader.exec_module = exec_module
        except Exception as error:  # a loader of another kind
            for _, what in _AFTER_IMPORT[fullname]:
                _step_aside(what, error)
        return spec


for _name in _AFTER_IMPORT:
    if _name in sys.modules:
        _call_back(sys.modules[_name])
sys.meta_path.insert(0, _AfterImport())
