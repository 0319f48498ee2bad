"""What pyproject.toml cannot say: folders of the repository's top level lie inside the package of a wheel, where
`dlm.config.folders` finds them."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

SHIPPED = {
    "dlm.shipped.conf": "conf",
    "dlm.shipped.sweeps": "sweeps",
    "dlm.shipped.reports.ablation": "reports/ablation",
}


def with_folders(package: str, folder: str) -> list[str]:
    """A package and, as packages of their own, the folders in it: setuptools warns of any that it is not told of."""
    inside = [path.relative_to(folder) for path in sorted(Path(folder).rglob("*")) if path.is_dir()]
    return [package, *(".".join([package, *path.parts]) for path in inside if "figures" not in path.parts)]


shipped = [name for package, folder in SHIPPED.items() for name in with_folders(package, folder)]
setup(
    packages=[*find_namespace_packages(include=["dlm*", "analysis*"]), *shipped],
    package_dir=SHIPPED,
    package_data={
        "dlm": ["assets/**/*", "harness/tasks/*.yaml", "watch/static/*"],
        "analysis": ["*.yaml", "templates/*.j2"],
        **{name: ["*.yaml", "results.json"] for name in shipped},
    },
)
