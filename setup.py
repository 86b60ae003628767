"""Package metadata, read from settings.ini so that it is written once."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

root = Path(__file__).parent
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(root / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]


def lines(key):
    return [line.strip() for line in cfg.get(key, "").splitlines() if line.strip()]


statuses = {"2": "2 - Pre-Alpha", "3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}
licenses = {"apache2": "Apache-2.0"}
reproduce, dev, optional, export, benchmark, browser = (lines(f"{name}_requirements") for name in ("reproduce", "dev", "optional", "export", "benchmark", "browser"))

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8") if (root / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license=licenses[cfg["license"]],
    license_files=["LICENSE"],
    keywords=cfg["keywords"].split(),
    project_urls={"Paper": "https://arxiv.org/abs/2503.00802"},
    packages=[cfg["lib_path"]],
    include_package_data=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require={"reproduce": reproduce, "dev": reproduce + dev, "optional": optional, "export": export, "benchmark": benchmark, "browser": browser},
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    classifiers=[
        f"Development Status :: {statuses[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(int(cfg["min_python"].split(".")[1]), 13)),
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    zip_safe=False,
)
