"""Build the package together with the start-up files through which nnU-Net finds the trainers (see `startup.py`)."""

from pathlib import Path

from setuptools.command import build_py as setuptools_build_py

PTH = (
    "import sys; exec('try:\\n    from nnunetv2_freetumor.startup import extend\\n    extend()\\n"
    "except Exception:\\n    pass')\n"
)
STARTUP_FILES = {
    "nnunetv2_freetumor.pth": PTH,
    "nnunetv2_freetumor.start": "nnunetv2_freetumor.startup:extend\n",  # for Python 3.15 and later, instead of the .pth
}


class build_py(setuptools_build_py.build_py):  # setuptools names commands in lower case
    """Build as setuptools does, then put the start-up files beside the package, also in editable installs."""

    def run(self) -> None:
        """Write the package and the start-up files."""
        super().run()
        folder = self.get_finalized_command("install").install_purelib if self.editable_mode else self.build_lib
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in STARTUP_FILES.items():
            Path(folder, name).write_text(text, encoding="utf-8")
