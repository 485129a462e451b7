"""Compiles the kernels' C files side by side: each level of instructions takes a minute by itself."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class ParallelBuild(build_ext):
    """Gives each source file to a compiler of its own."""

    def build_extension(self, ext: Extension) -> None:
        """Builds one extension."""
        compile_files = self.compiler.compile

        def compile_each(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_files([source], **options), sources)
                return [file for files in objects for file in files]

        self.compiler.compile = compile_each
        super().build_extension(ext)


setup(cmdclass={"build_ext": ParallelBuild})
