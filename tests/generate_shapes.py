"""Write the typed shapes of documents from their schemas: `configs/schemas/` to
`scripts/adapterops/shapes/`.

    python tests/generate_shapes.py             # what `make types` does
    python tests/generate_shapes.py DIRECTORY   # elsewhere; a test compares

The schemas are the source: they are what other programs read, and what files are held to when they
are loaded. A field that is renamed there and not in the code fails the type checker.
"""

import subprocess
import sys
from pathlib import Path

from datamodel_code_generator import (
    DataModelType,
    InputFileType,
    LiteralType,
    NamingStrategy,
    PythonVersion,
    generate,
)
from datamodel_code_generator.format import Formatter

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = ROOT / "configs" / "schemas"
SHAPES = ROOT / "scripts" / "adapterops" / "shapes"


def class_name(schema: Path) -> str:
    """`gate_report.json` is `GateReport`."""
    return "".join(part.title() for part in schema.stem.split("_"))


def write(directory: Path) -> None:
    """One module for each schema: its document, and the objects in it, as TypedDicts."""
    directory.mkdir(parents=True, exist_ok=True)
    for schema in sorted(SCHEMAS.glob("*.json")):
        target = directory / f"{schema.stem}.py"
        generate(
            schema,
            input_file_type=InputFileType.JsonSchema,
            output=target,
            output_model_type=DataModelType.TypingTypedDict,
            target_python_version=PythonVersion.PY_311,
            use_standard_collections=True,
            use_union_operator=True,
            enum_field_as_literal=LiteralType.All,
            use_closed_typed_dict=False,
            naming_strategy=NamingStrategy.PrimaryFirst,
            class_name=class_name(schema),
            use_schema_description=True,
            formatters=[Formatter.BUILTIN],
            custom_file_header=f'"""The shape of `configs/schemas/{schema.name}`; `make types`."""',
        )
    for arguments in (["check", "--fix", "--quiet", "--select", "I"], ["format", "--quiet"]):
        config = ["--config", str(ROOT / "pyproject.toml")]
        subprocess.run(
            [Path(sys.executable).parent / "ruff", *arguments, *config, directory], check=True
        )


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else SHAPES)
