"""What pyproject.toml cannot say: folders of the repository's top level lie inside the package of a wheel, where
`dlm.config.folders` finds them."""

from setuptools import find_namespace_packages, setup

SHIPPED = {
    "dlm.shipped.conf": "conf",
    "dlm.shipped.sweeps": "sweeps",
    "dlm.shipped.reports.ablation": "reports/ablation",
}

setup(
    packages=[*find_namespace_packages(include=["dlm*", "analysis*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "dlm": ["assets/**/*", "harness/tasks/*.yaml"],
        "analysis": ["*.yaml", "templates/*.j2"],
        **{name: ["**/*.yaml", "results.json"] for name in SHIPPED},
    },
)
