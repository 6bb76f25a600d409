"""Maps the top-level folders adapters/, tasks/ and recipes/ into the scfm package."""

from setuptools import find_packages, setup

FOLDERS = ("adapters", "tasks", "recipes")
packages = find_packages(include=["scfm*"], exclude=[f"scfm.{f}*" for f in FOLDERS])
for folder in FOLDERS:
    packages += [f"scfm.{folder}", *(f"scfm.{folder}.{p}" for p in find_packages(folder))]

setup(
    packages=packages,
    package_dir={f"scfm.{folder}": folder for folder in FOLDERS},
    package_data={
        "": [
            f"**/*.{ending}"
            for ending in (
                "toml",
                "yaml",
                "md",
                "tsv.gz",
                "json.gz",
                "csv",
                "png",
                "h5ad",
                "safetensors",
                "json",
                "html.j2",
                "sbatch",
            )
        ]
        + ["py.typed"]
    },
)
