"""Package metadata, read from settings.ini so that it is written once."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(root / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
readme = root / "README.md"
minor = int(cfg["min_python"].split(".")[1])
status = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}[cfg["status"]]


def lines(key):
    "The entries of a setting that has one on each line."
    return [line.strip() for line in cfg.get(key, "").splitlines() if line.strip()]


def extra(*names):
    "Requirements of one extra, or of several together."
    return [line for name in names for line in lines(f"{name}_requirements")]


REPRODUCE = ("report", "data", "notebook", "reproduce")

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=cfg["keywords"].split(),
    project_urls={"Paper": "https://arxiv.org/abs/2503.00802"},
    packages=find_packages(include=[f"{cfg['lib_path']}*"]),
    package_data={cfg["lib_path"]: ["profiles/*.yaml", "rows.yaml", "weights/**/*", "**/*.j2"]},
    include_package_data=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require={
        **{name: extra(name) for name in ("report", "data", "notebook", "optional", "export")},
        **{name: extra(name) for name in ("benchmark", "browser", "docs")},
        "reproduce": extra(*REPRODUCE),
        "dev": extra(*REPRODUCE, "optional", "export", "dev"),
    },
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    classifiers=[
        f"Development Status :: {status}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{n}" for n in range(minor, 13)),
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    zip_safe=False,
)
