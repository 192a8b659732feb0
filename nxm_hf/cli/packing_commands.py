"""The commands that change how a sparse model is stored: `nxm pack` and `nxm unpack`."""

from nxm_hf.cli.options import Model, OutDirectory


def pack_command(model: Model, out: OutDirectory) -> int:
    """Store a sparse model as kept values and indices, without loss.

    Layers with 2:4 take 56.25 % of their bytes in bfloat16 and 53.13 % in float32. The files beside the weights are
    copied. After `import nxm_hf`, from_pretrained loads OUT. Exits with 0, or with 2 if MODEL cannot be read or packed.
    """
    from nxm_hf.storage.model_source import model_directory
    from nxm_hf.storage.packed_directory import pack_directory

    print(pack_directory(model_directory(model), out))
    return 0


def unpack_command(model: Model, out: OutDirectory) -> int:
    """Store a packed model as plain weights with zeros, without loss.

    Transformers loads OUT without this library. Exits with 0, or with 2 if MODEL is not packed or is damaged.
    """
    from nxm_hf.storage.model_source import model_directory
    from nxm_hf.storage.packed_directory import unpack_directory

    print(unpack_directory(model_directory(model), out))
    return 0
