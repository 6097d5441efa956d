"""List the operators of exported graphs as a table, to compare them with what a compiler supports.

python examples/deployment/list_operators.py model.onnx model-int8.onnx
python examples/deployment/list_operators.py model.mlpackage        # Core ML's; needs coremltools
"""

import sys
from collections import Counter
from pathlib import Path


def operators(file: Path) -> tuple[str, Counter[str]]:
    """Version of the operators of a graph, and how many there are of each kind."""
    if file.suffix == ".mlpackage":
        import coremltools

        program = coremltools.models.MLModel(str(file), skip_model_load=True).get_spec().mlProgram
        (function,) = program.functions.values()
        (block,) = function.block_specializations.values()
        return function.opset, Counter(one.type for one in block.operations if one.type != "const")
    import onnx

    model = onnx.load(file, load_external_data=False)
    versions = ", ".join(f"{one.domain or 'opset'} {one.version}" for one in model.opset_import)
    return versions, Counter(f"{one.domain}:{one.op_type}".removeprefix(":") for one in model.graph.node)


def main(files: list[Path]) -> None:
    if not files or files[0].name in ("-h", "--help"):
        sys.exit(__doc__)
    if missing := [str(file) for file in files if not (file.exists() and file.suffix in (".onnx", ".mlpackage"))]:
        sys.exit(f"list_operators.py: {', '.join(missing)}: give .onnx files or .mlpackage folders that exist")
    try:
        found = [operators(file) for file in files]
    except ModuleNotFoundError as error:
        sys.exit(f"list_operators.py: {error.name} is not installed: pip install {error.name}")
    print("| operator |", " | ".join(f"{file.name}, {version}" for file, (version, _) in zip(files, found)), "|")
    print("|---" * (len(files) + 1) + "|")
    for name in sorted({name for _, counts in found for name in counts}):
        print(f"| {name} |", " | ".join(str(counts[name] or "") for _, counts in found), "|")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
