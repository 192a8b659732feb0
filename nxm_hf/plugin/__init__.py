"""Register with transformers at `import nxm_hf`, without importing transformers."""

from nxm_hf.plugin.after_import import after_import

__all__ = ["after_import", "register_with_transformers"]

# Every `from_pretrained` needs this module. When it is there, all that a quantizer of ours imports can be imported.
_NEEDED = "transformers.modeling_utils"


def register_with_transformers() -> None:
    """Register nxm_hf's classes in transformers, at once or when transformers is imported.

    `import nxm_hf` calls it. Afterwards `AutoModel.from_pretrained` loads models that nxm_hf saved, in either order of
    the two imports.
    """
    after_import(_NEEDED, _register)


def _register() -> None:
    """Import the modules that register themselves with transformers."""
    from nxm_hf.packing import quantizer  # noqa: F401
