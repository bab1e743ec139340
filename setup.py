"""Copy the tables of data/paper into the built package. Everything else about the build is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithTables(build_py):
    """Build the package, and copy data/paper/*.csv to pckd_nb/paper, where `paths.paper_folder` finds them."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if self.editable_mode:
            return  # the package stays in the repository
        folder = Path(self.build_lib, "pckd_nb", "paper")
        self.mkpath(str(folder))
        for table in sorted(Path("data", "paper").glob("*.csv")):
            self.copy_file(str(table), str(folder / table.name))


setup(cmdclass={"build_py": BuildWithTables})
